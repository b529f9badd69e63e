package httpapi

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"
)

// checkEvery is how often, at most, a file is asked whether it has changed.
const checkEvery = time.Second

// Watched is what some files say, read again once they have changed. They are looked
// at when they are needed, at most once a second: there is nothing to start or stop.
// What cannot be read keeps the old value, and is logged once.
type Watched[T any] struct {
	files []string
	load  func() (T, error)
	now   func() time.Time
	log   *slog.Logger

	mu      sync.Mutex
	checked time.Time
	seen    []fs.FileInfo
	value   T
}

// NewWatched loads the files for the first time.
func NewWatched[T any](files []string, load func() (T, error), now func() time.Time, log *slog.Logger) (*Watched[T], error) {
	w := &Watched[T]{files: files, load: load, now: now, log: log, checked: now(), seen: look(files)}
	var err error
	w.value, err = load()
	return w, err
}

// Get is the newest value.
func (w *Watched[T]) Get() T {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now := w.now(); now.Sub(w.checked) >= checkEvery || now.Before(w.checked) {
		w.checked = now
		w.reload()
	}
	return w.value
}

func (w *Watched[T]) reload() {
	found := look(w.files) // before they are read: a change meanwhile is seen the next time
	if same(found, w.seen) {
		return
	}
	w.seen = found
	ctx, files := context.Background(), strings.Join(w.files, ", ")
	value, err := w.load()
	if err != nil {
		w.log.ErrorContext(ctx, "a file has changed and cannot be used; what it said before stays in force", "files", files, "error", err)
		return
	}
	w.value = value
	w.log.InfoContext(ctx, "read again, since it has changed", "files", files)
}

// look is what tells one state of the files from another; nil where one is missing.
func look(files []string) []fs.FileInfo {
	out := make([]fs.FileInfo, len(files))
	for i, file := range files {
		if info, err := os.Stat(file); err == nil {
			out[i] = info
		}
	}
	return out
}

func same(a, b []fs.FileInfo) bool {
	for i := range a {
		if a[i] == nil || b[i] == nil {
			if a[i] != b[i] {
				return false
			}
			continue
		}
		if !os.SameFile(a[i], b[i]) || !a[i].ModTime().Equal(b[i].ModTime()) || a[i].Size() != b[i].Size() || a[i].Mode() != b[i].Mode() {
			return false
		}
	}
	return true
}

// maxTokensFile is how large, in bytes, a tokens file may be.
const maxTokensFile = 1 << 20

// Tokens are the static tokens that are in force, by id.
type Tokens = Watched[map[string]Token]

// NewTokens watches a tokens file. A file that is not there holds no token, so that
// nobody gets in until the first one is made, or once it is gone.
func NewTokens(file string, now func() time.Time, log *slog.Logger) (*Tokens, error) {
	return NewWatched([]string{file}, func() (map[string]Token, error) {
		list, err := ReadTokens(file)
		if errors.Is(err, fs.ErrNotExist) {
			log.WarnContext(context.Background(), "there is no tokens file: nobody can use the HTTP API", "file", file,
				"fix", "orphanwatch token create --name NAME --scopes read --tokens-file "+file)
			return nil, nil
		}
		byID := make(map[string]Token, len(list))
		for _, t := range list {
			byID[t.ID] = t
		}
		return byID, err
	}, now, log)
}
