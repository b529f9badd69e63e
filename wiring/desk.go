package wiring

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/celery"
	"github.com/orphanwatch/orphanwatch/watcher"
)

// DaemonStatus is what a running copy publishes of itself, every second.
type DaemonStatus struct {
	watcher.Status
	Instance string    `json:"instance"`
	Version  string    `json:"version"`
	At       time.Time `json:"at"`
	// Guard is set while the guard holds all removals on evidence absent.
	Guard *reconciler.Trip `json:"guard,omitempty"`
	// Pass is the resync under way, or the last one.
	Pass reconciler.Pass `json:"pass"`
	// Transactions that are open and hold removals.
	Transactions []string `json:"transactions,omitempty"`
	// Broker is the state of its lists.
	Broker MessageStatus `json:"broker"`
	// Held counts orphans of the last pass by binding and by what holds them.
	Held map[string]int64 `json:"held,omitempty"`
}

// MessageStatus is what the last sweep over the broker showed.
type MessageStatus struct {
	// Lists are known to hold messages, now or at times.
	Lists int `json:"lists"`
	// Unreadable elements are no messages that we can read; they are left alone.
	Unreadable int64 `json:"unreadable"`
	// Tombstones are where messages were that are too far from the ends of their list.
	Tombstones int64 `json:"tombstones"`
}

// statusTTL is for how long a copy's word is good.
const statusTTL = 10 * time.Second

// Desk joins the control key in Redis, the guard and the reconciler: it is where
// the orders of pause, resume and the like arrive. It implements watcher.Desk.
type Desk struct {
	Store      *celery.Store
	Broker     *celery.Broker
	Reconciler *reconciler.Reconciler
	Tables     reconciler.Tables
	Instance   string
	Version    string
	Log        *slog.Logger

	mu     sync.Mutex
	epoch  uint64
	saved  []byte
	paused bool
	// unsaved: the guard's newest state could not be kept.
	unsaved bool
}

// ClaimEpoch makes this copy the newest leader, with the guard as the one before
// left it. The first one ever records which database this is.
func (d *Desk) ClaimEpoch(ctx context.Context) (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	identity, err := d.Tables.Identity(ctx)
	if err == nil {
		_, err = d.Store.RecordIdentity(ctx, identity)
	}
	if err != nil {
		return 0, fmt.Errorf("record the database's identity: %w", err)
	}
	// The broker may be another server, which remembers more than that of the results.
	known, err := d.Broker.Epoch(ctx)
	if err != nil {
		return 0, fmt.Errorf("ask the broker for the epoch: %w", err)
	}
	d.epoch, err = d.Store.ClaimEpoch(ctx, max(d.epoch, known))
	if err != nil {
		return 0, fmt.Errorf("claim the epoch: %w", err)
	}
	if err := d.Broker.SetEpoch(ctx, d.epoch); err != nil {
		return 0, fmt.Errorf("tell the broker the epoch: %w", err)
	}
	// Only now: from here on the one before can save no other.
	kept, err := d.Store.LoadGuard(ctx)
	if err != nil {
		return 0, fmt.Errorf("load the guard: %w", err)
	}
	// A trip that could not be kept yet (Redis was away) must not be forgotten.
	if len(kept) > 0 || !d.unsaved {
		var trip *reconciler.Trip
		if len(kept) > 0 {
			if err := json.Unmarshal(kept, &trip); err != nil {
				return 0, fmt.Errorf("read the guard in orphanwatch:control: %w", err)
			}
		}
		d.Reconciler.Guard.Load(trip)
	}
	d.saved = kept
	return d.epoch, nil
}

// Orders carries out accept and the wish for a pass, and keeps the guard's state. A pause needs
// no carrying out: every removal script reads it. It fails with ErrStale where this copy was
// replaced, which one without work learns in no other way.
func (d *Desk) Orders(ctx context.Context) (resync string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	state, err := d.Store.State(ctx)
	if err != nil {
		return "", fmt.Errorf("read orders: %w", err)
	}
	if state.Epoch != d.epoch {
		return "", reconciler.ErrStale
	}
	if state.Paused != d.paused {
		d.paused = state.Paused
		d.Log.WarnContext(ctx, "removals are paused or go on, by an operator", "paused", state.Paused, "by", state.PausedBy)
	}
	guard := d.Reconciler.Guard
	switch {
	case state.Accept != "":
		if trip := guard.Tripped(); trip != nil {
			identity, err := d.Tables.Identity(ctx)
			if err == nil {
				err = d.Store.SetIdentity(ctx, d.epoch, identity)
			}
			if err != nil {
				return "", fmt.Errorf("accept the database's identity: %w", err)
			}
			guard.Accept()
			d.Log.WarnContext(ctx, "an operator accepts what the guard holds", "reason", trip.Reason, "orphans", trip.Orphans)
			resync = "asked for"
		}
	case state.Resync != "":
		resync = "asked for"
	}
	// Taken only now: an order that could not be carried out is there the next time.
	if state.Resync != "" {
		_, err = d.Store.TakeResync(ctx, d.epoch)
	}
	if state.Accept != "" && err == nil {
		_, err = d.Store.TakeAccept(ctx, d.epoch)
	}
	if err != nil {
		return "", fmt.Errorf("take orders: %w", err)
	}
	tripped, err := d.keepGuard(ctx)
	if tripped && resync == "" {
		resync = "asked for" // so that the report is of everything
	}
	return resync, err
}

// keepGuard saves the guard's state where it has changed, and tells whether it
// has tripped since.
func (d *Desk) keepGuard(ctx context.Context) (tripped bool, err error) {
	var state []byte
	trip := d.Reconciler.Guard.Tripped()
	if trip != nil {
		if state, err = json.Marshal(trip); err != nil {
			return false, fmt.Errorf("encode the guard: %w", err)
		}
	}
	if string(state) == string(d.saved) {
		return false, nil
	}
	d.unsaved = true
	if err := d.Store.SaveGuard(ctx, d.epoch, state); err != nil {
		return false, fmt.Errorf("keep the guard: %w", err)
	}
	tripped = len(d.saved) == 0 && len(state) > 0
	d.unsaved = false
	d.saved = state
	return tripped, nil
}

// Publish shows the state in Redis, for the command line.
func (d *Desk) Publish(ctx context.Context, s watcher.Status) error {
	body, err := json.Marshal(d.Status(s))
	if err != nil {
		return fmt.Errorf("encode the status: %w", err)
	}
	return d.Store.PublishStatus(ctx, d.Instance, body, statusTTL)
}

// Status adds what the reconciler knows to the controller's status.
func (d *Desk) Status(s watcher.Status) DaemonStatus {
	out := DaemonStatus{
		Status: s, Instance: d.Instance, Version: d.Version, At: time.Now(),
		Guard: d.Reconciler.Guard.Tripped(), Pass: d.Reconciler.Progress(), Held: map[string]int64{},
		Broker: MessageStatus{Lists: len(d.Broker.Lists()), Unreadable: d.Broker.Unreadable(), Tombstones: d.Broker.Tombstones()},
	}
	if s.Queue.Waiting[reconciler.HeldByTransactions] > 0 {
		for _, t := range d.Reconciler.Waiting() {
			out.Transactions = append(out.Transactions, t.String())
		}
	}
	for k, n := range d.Reconciler.OrphanCounts() {
		if n > 0 {
			out.Held[k.Binding+" "+string(k.HeldBy)] = n
		}
	}
	return out
}
