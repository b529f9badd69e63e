package deploy_test

import (
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

// Redis 6.2 takes the users' files too. There a new user begins with all channels, beside
// which no pattern is allowed: Redis would not start.
func TestTheUsersOfRedis62(t *testing.T) {
	for file, password := range map[string]string{"redis/users.acl": "change-me", "example/users.acl": "demo"} {
		t.Run(file, func(t *testing.T) {
			server := sandbox.NewRedis(t, sandbox.RedisOptions{ACLFile: file, Args: []string{"--acl-pubsub-default", "allchannels"}})
			options, err := redis.ParseURL(sandbox.As(server.URL(), "orphanwatch", password))
			require.NoError(t, err)
			client := redis.NewClient(options)
			defer client.Close()
			require.NoError(t, client.Publish(t.Context(), "/0.celery.pidbox", "").Err())
			require.ErrorContains(t, client.Publish(t.Context(), "others", "").Err(), "NOPERM")
		})
	}
}
