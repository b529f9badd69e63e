package sandbox

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Proxy is a faulty TCP connection to a server. It starts healthy.
//
// It is ours and not toxiproxy's: the demo ships this package, toxiproxy would bring a
// web server and two metrics and logging libraries into the binary; its links leak
// goroutines when a connection is cut under load, which goleak reports in every user;
// and its stalled connections do not survive a heal, while those of a network do.
//
//	healthy ◀──Heal── slow, stalled, cut;  Slow, Stall, Cut lead there from any state
type Proxy struct {
	upstream string
	addr     string
	token    net.Listener // reserves the port while the proxy is cut

	mu       sync.Mutex
	listener net.Listener // nil while cut
	links    map[*link]struct{}
	flowing  chan struct{} // closed unless stalled
	latency  time.Duration
	closed   bool
	wg       sync.WaitGroup
}

// StartProxy listens on a free port of 127.0.0.1 and passes connections on to upstream
// (host:port), until Close.
func StartProxy(upstream string) (*Proxy, error) {
	port, token, err := reservePort()
	if err != nil {
		return nil, fmt.Errorf("start proxy: %w", err)
	}
	p := &Proxy{
		upstream: upstream, addr: fmt.Sprintf("127.0.0.1:%d", port), token: token,
		links: map[*link]struct{}{}, flowing: make(chan struct{}),
	}
	close(p.flowing)
	if err := p.Heal(); err != nil {
		shut(token)
		return nil, err
	}
	return p, nil
}

// Addr is the address to connect to instead of the server's; it never changes.
func (p *Proxy) Addr() string { return p.addr }

// URL is rawURL with the proxy's address in place of the server's.
func (p *Proxy) URL(rawURL string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		return rawURL // not one of ours; whoever dials it says what is wrong
	}
	u.Host = p.addr
	return u.String()
}

// Cut drops every connection and refuses new ones.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil {
		shut(p.listener)
		p.listener = nil
	}
	for l := range p.links {
		l.close()
	}
}

// Drop drops every connection; new ones are welcome.
func (p *Proxy) Drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.close()
	}
}

// Stall lets nothing pass, neither data nor the end of a connection; connections stay
// and new ones are accepted, as on a network that loses every packet.
func (p *Proxy) Stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.flowing:
		p.flowing = make(chan struct{})
	default:
	}
}

// Slow delays everything by latency, each way, without limiting what is under way.
func (p *Proxy) Slow(latency time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.latency = latency
}

// Heal ends Cut, Stall and Slow. What waited in stalled connections is delivered, in
// order. It fails only if somebody has taken the port meanwhile.
func (p *Proxy) Heal() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return fmt.Errorf("heal proxy: %w", net.ErrClosed)
	}
	p.latency = 0
	p.unstall()
	if p.listener != nil {
		return nil
	}
	listener, err := relisten(p.addr)
	if err != nil {
		return fmt.Errorf("heal proxy: %w", err)
	}
	p.listener = listener
	p.wg.Go(func() { p.accept(listener) })
	return nil
}

// relisten listens on an address that a listener of this process has just left. Until
// its exec, a child that was forked meanwhile still holds a copy of that listener.
func relisten(addr string) (net.Listener, error) {
	deadline := time.Now().Add(2 * time.Second)
	for {
		listener, err := net.Listen("tcp", addr)
		if err == nil || !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(deadline) {
			return listener, err
		}
		time.Sleep(time.Millisecond)
	}
}

// Connections is the number of connections that pass through, or are stalled, now.
func (p *Proxy) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.links)
}

// Held is how many bytes for the server are on their way through the proxy: while it is
// stalled, what clients have sent in vain.
func (p *Proxy) Held() (n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		n += l.held.Load()
	}
	return n
}

// Close cuts for good and awaits the proxy's goroutines.
func (p *Proxy) Close() {
	p.Cut()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.wg.Wait()
	shut(p.token)
}

func (p *Proxy) unstall() {
	select {
	case <-p.flowing:
	default:
		close(p.flowing)
	}
}

// faults returns what holds for a piece of data now.
func (p *Proxy) faults() (flowing <-chan struct{}, latency time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.flowing, p.latency
}

func (p *Proxy) accept(listener net.Listener) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(listener, client) })
	}
}

func (p *Proxy) serve(listener net.Listener, client net.Conn) {
	defer shut(client)
	server, err := net.DialTimeout("tcp", p.upstream, 10*time.Second)
	if err != nil {
		return
	}
	defer shut(server)
	l := &link{proxy: p, client: client, server: server, done: make(chan struct{})}
	p.mu.Lock()
	if p.listener != listener { // cut since the accept
		p.mu.Unlock()
		return
	}
	p.links[l] = struct{}{}
	p.mu.Unlock()

	var wg sync.WaitGroup
	var back atomic.Int64
	wg.Go(func() { l.pump(server, client, &l.held) })
	wg.Go(func() { l.pump(client, server, &back) })
	wg.Wait()
	l.close()

	p.mu.Lock()
	delete(p.links, l)
	p.mu.Unlock()
}

// link is one connection through the proxy.
type link struct {
	proxy          *Proxy
	client, server net.Conn
	once           sync.Once
	done           chan struct{}
	held           atomic.Int64 // bytes for the server
}

func (l *link) close() {
	l.once.Do(func() {
		close(l.done)
		shut(l.client)
		shut(l.server)
	})
}

// piece is some data under way, or the end (no data).
type piece struct {
	data []byte
	due  time.Time
}

// pump moves data one way through a delay line. Its reader has ended when it returns.
func (l *link) pump(to, from net.Conn, held *atomic.Int64) {
	line := make(chan piece, 64)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(line)
		buffer := make([]byte, 32<<10)
		for {
			n, err := from.Read(buffer)
			_, latency := l.proxy.faults()
			p := piece{data: append([]byte(nil), buffer[:n]...), due: time.Now().Add(latency)}
			if n > 0 || errors.Is(err, io.EOF) {
				held.Add(int64(n))
				select {
				case line <- p:
				case <-l.done:
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
	for p := range line {
		if !l.deliver(to, p) {
			l.close()
			break
		}
		held.Add(-int64(len(p.data)))
	}
	wg.Wait()
}

// deliver waits until the piece is due and nothing is stalled, then passes it on.
func (l *link) deliver(to net.Conn, p piece) bool {
	if wait := time.Until(p.due); wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-l.done:
			return false
		}
	}
	for {
		flowing, _ := l.proxy.faults()
		select {
		case <-flowing:
		case <-l.done:
			return false
		}
		if now, _ := l.proxy.faults(); now == flowing {
			break // not stalled again meanwhile
		}
	}
	if len(p.data) == 0 {
		tcp, ok := to.(*net.TCPConn)
		return ok && tcp.CloseWrite() == nil
	}
	_, err := to.Write(p.data)
	return err == nil
}
