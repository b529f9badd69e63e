module github.com/orphanwatch/orphanwatch/deploy/check

go 1.26.8

require (
	github.com/compose-spec/compose-go/v2 v2.16.2 // indirect
	github.com/moby/buildkit v0.34.2 // indirect
	github.com/moby/patternmatcher v0.6.1 // indirect
	github.com/stretchr/testify v1.12.1 // indirect
)
