package sandbox

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Ports are taken below Linux's ephemeral range (32768 and up): while a server is
// stopped, no outgoing connection can take its port.
const (
	firstPort = 20000
	lastPort  = 31999
)

// reservePort finds a free TCP port of 127.0.0.1 and reserves it among the sandboxes
// of this machine until the listener is closed or we die: the listener is an abstract
// Unix socket that bears the port's number.
func reservePort() (int, net.Listener, error) {
	for range 200 {
		port := firstPort + rand.IntN(lastPort-firstPort+1)
		token, err := net.Listen("unix", "@orphanwatch-sandbox-port-"+strconv.Itoa(port))
		if err != nil {
			continue
		}
		probe, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			shut(token)
			continue
		}
		shut(probe)
		return port, token, nil
	}
	return 0, nil, fmt.Errorf("find a free port: %w",
		errors.New("none of 200 tries between "+strconv.Itoa(firstPort)+" and "+strconv.Itoa(lastPort)+" was free"))
}
