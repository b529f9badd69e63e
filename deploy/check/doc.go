// Package check checks what is shipped for operators against the types of the tools that
// read it, where these tools cannot run: the Helm chart as Kubernetes and the Prometheus
// Operator decode it, and as the daemon itself reads what it mounts; the compose stack and
// the images as Docker reads them; the dashboard as Grafana does.
//
// It is a module of its own, so that those types are no dependency of the daemon. `make
// deploy-check` runs it.
package check
