package wiring

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/celery"
)

// The keys of package celery's doc.go that a look at the records needs.
const (
	recordsKey = celery.Own + "records"
	undoPrefix = celery.Own + "undo:"
)

// previewPage is how many records are listed at once.
const previewPage = 500

// RestorePreview is what Restore would do for each key of the task or row with
// this id; empty where nothing is remembered of it.
func (s *Stores) RestorePreview(ctx context.Context, id string) ([]Restored, error) {
	entries, err := s.Celery.History(ctx, id)
	if err != nil {
		return nil, err
	}
	out := make([]Restored, 0, len(entries))
	for _, e := range entries {
		r := Restored{Kind: e.Kind, ID: e.ID, Keys: []RestoredKey{}, HoldUntil: e.HoldUntil, RevokedAt: e.RevokedAt}
		if e.Kind == "row" {
			r.Table = e.Table
		}
		for key, expires := range e.Undo {
			status, err := s.preview(ctx, key, expires)
			if err != nil {
				return nil, err
			}
			r.Keys = append(r.Keys, RestoredKey{Key: key, Status: status})
		}
		if e.Kind == "task" {
			kept, err := s.Broker.MessagesOf(ctx, "task:"+e.ID)
			if err != nil {
				return nil, err
			}
			for _, m := range kept {
				status := "restored"
				if m.List == "" {
					status = "unplaced"
				}
				r.Keys = append(r.Keys, RestoredKey{Key: m.List, Tag: m.Tag, Status: status})
			}
		}
		out = append(out, r)
	}
	return out, nil
}

// preview is what restore.lua would answer for a key.
func (s *Stores) preview(ctx context.Context, key string, expires time.Time) (string, error) {
	pipe := s.redis.Pipeline()
	undo, living := pipe.Exists(ctx, undoPrefix+key), pipe.Exists(ctx, key)
	if _, err := pipe.Exec(ctx); err != nil {
		return "", redisFailed("look at "+key, err)
	}
	switch {
	case !expires.IsZero() && !expires.After(time.Now()):
		return "expired", nil
	case undo.Val() == 0:
		return "gone", nil
	case living.Val() > 0:
		return "exists", nil
	}
	return "restored", nil
}

// RestorePreviewSince is RestorePreview of whatever was last removed within that
// time, page by page.
func (s *Stores) RestorePreviewSince(ctx context.Context, since time.Duration, yield func([]Restored) error) error {
	now, err := s.redis.Time(ctx).Result()
	if err != nil {
		return redisFailed("read the time", err)
	}
	by := redis.ZRangeArgs{
		Key: recordsKey, ByScore: true, Start: strconv.FormatInt(now.Add(-since).UnixMilli(), 10), Stop: "+inf", Count: previewPage,
	}
	for {
		records, err := s.redis.ZRangeArgs(ctx, by).Result()
		if err != nil {
			return redisFailed("list records", err)
		}
		if len(records) == 0 {
			return nil
		}
		var page []Restored
		for _, record := range records {
			kind, id, _ := strings.Cut(record, ":")
			if kind == "row" {
				_, id, _ = strings.Cut(id, ":")
			}
			previews, err := s.RestorePreview(ctx, id)
			if err != nil {
				return err
			}
			for _, p := range previews {
				if p.Kind == kind { // its row, or its task, is a record of its own
					page = append(page, p)
				}
			}
		}
		if err := yield(page); err != nil {
			return err
		}
		by.Offset += int64(len(records))
	}
}

// redisFailed says what was being done, and marks what means that Redis is away.
func redisFailed(what string, err error) error {
	var network net.Error
	if errors.As(err, &network) || errors.Is(err, io.EOF) {
		return fmt.Errorf("redis: %s: %w: %w", what, reconciler.ErrUnreachable, err)
	}
	return fmt.Errorf("redis: %s: %w", what, err)
}
