package watcher

import (
	"sync"
	"sync/atomic"
)

// bell wakes all who wait, again and again.
type bell struct {
	mu sync.Mutex
	ch chan struct{}
}

func newBell() *bell { return &bell{ch: make(chan struct{})} }

// rung is closed at the next ring.
func (b *bell) rung() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ch
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.ch)
	b.ch = make(chan struct{})
}

// latch calls what it releases once n have been done.
type latch struct {
	left atomic.Int64
	then func()
}

func newLatch(n int) *latch {
	l := &latch{then: func() {}}
	l.left.Store(int64(n))
	return l
}

// release is what is to be called; set it while one is not done.
func (l *latch) release(then func()) { l.then = then }

func (l *latch) done() {
	if l.left.Add(-1) == 0 {
		l.then()
	}
}

// fifo is a ring that grows.
type fifo struct {
	items []*Entry
	head  int
}

func (f *fifo) len() int { return len(f.items) - f.head }

func (f *fifo) push(e *Entry) { f.items = append(f.items, e) }

func (f *fifo) pop() *Entry {
	if f.head == len(f.items) {
		return nil
	}
	e := f.items[f.head]
	f.items[f.head] = nil
	f.head++
	if f.head == len(f.items) {
		if cap(f.items) > 4096 {
			f.items = nil // give the memory of a burst back
		}
		f.items, f.head = f.items[:0], 0
	} else if f.head >= 4096 && f.head*2 >= len(f.items) {
		n := copy(f.items, f.items[f.head:])
		clear(f.items[n:])
		f.items, f.head = f.items[:n], 0
	}
	return e
}

// laterHeap is ordered by due time.
type laterHeap []*Entry

func (h laterHeap) Len() int           { return len(h) }
func (h laterHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h laterHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push is heap.Interface's.
func (h *laterHeap) Push(x any) {
	e := x.(*Entry)
	e.index = len(*h)
	*h = append(*h, e)
}

// Pop is heap.Interface's.
func (h *laterHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return e
}
