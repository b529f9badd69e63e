package wiring

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/httpapi"
)

// Token is a token of the HTTP API, without its secret.
type Token = httpapi.Token

const tokensHeader = `# Tokens of orphanwatch's HTTP API, a line each; read again when the file changes.
# Only digests are here: a token is shown once, by orphanwatch token create.
`

// CreateToken adds a token to the file, which it makes if need be. The text is what its
// holder sends, and is nowhere else. It expires after that time; 0 means never.
func CreateToken(ctx context.Context, file, name string, scopes []string, expires time.Duration) (t Token, text string, err error) {
	parsed, err := httpapi.ParseScopes(scopes)
	if err != nil {
		return t, "", &TokenInputError{err}
	}
	now, end := time.Now(), time.Time{}
	if expires > 0 {
		end = now.Add(expires)
	}
	if t, text, err = httpapi.NewToken(name, parsed, now, end); err != nil {
		return t, "", &TokenInputError{err}
	}
	err = editTokens(ctx, file, func(old []byte) ([]byte, error) {
		if len(old) == 0 {
			old = []byte(tokensHeader)
		}
		if !bytes.HasSuffix(old, []byte("\n")) {
			old = append(old, '\n')
		}
		return append(old, t.Line()+"\n"...), nil
	})
	if err != nil {
		return t, "", err
	}
	return t, text, nil
}

// TokenInputError says that a token cannot be such as was asked for.
type TokenInputError struct{ error }

func (e *TokenInputError) Unwrap() error { return e.error }

// ListTokens are the tokens in the file.
func ListTokens(file string) ([]Token, error) { return httpapi.ReadTokens(file) }

// ErrNoToken says that there is no token of that id or name.
var ErrNoToken = errors.New("there is no such token")

// RevokeToken removes the token with that id, or the only one with that name.
func RevokeToken(ctx context.Context, file, which string) (Token, error) {
	var gone Token
	err := editTokens(ctx, file, func(old []byte) ([]byte, error) {
		tokens, err := httpapi.ParseTokens(old)
		if err != nil {
			return nil, err
		}
		var ids []string
		for _, t := range tokens {
			if t.ID == which {
				ids, gone = []string{t.ID}, t
				break
			}
			if t.Name == which {
				ids, gone = append(ids, t.ID), t
			}
		}
		switch len(ids) {
		case 0:
			return nil, reconciler.Hint(fmt.Errorf("%w: %s", ErrNoToken, strconv.Quote(which)), "orphanwatch token list shows ids and names")
		case 1:
		default:
			return nil, reconciler.Hint(fmt.Errorf("%d tokens are named %s", len(ids), which), "give one of the ids: "+strings.Join(ids, ", "))
		}
		// By the line, so that comments stay.
		lines := slices.DeleteFunc(strings.SplitAfter(string(old), "\n"), func(line string) bool {
			return slices.Contains(strings.Fields(line), "id="+gone.ID)
		})
		return []byte(strings.Join(lines, "")), nil
	})
	return gone, err
}

// How long an edit waits for another one.
const (
	editTries = 50
	editWait  = 100 * time.Millisecond
)

// editTokens replaces the file in one step. The new file is the lock, too: of two at
// once, one makes it and the other waits.
func editTokens(ctx context.Context, file string, edit func(old []byte) ([]byte, error)) error {
	if to, err := filepath.EvalSymlinks(file); err == nil {
		file = to
	}
	next := file + ".new"
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	for i := 0; errors.Is(err, fs.ErrExist) && i < editTries; i++ {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(editWait):
		}
		f, err = os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	}
	if errors.Is(err, fs.ErrExist) {
		return reconciler.Hint(fmt.Errorf("tokens file: another orphanwatch token is at work, or was killed: %w", err), "if none runs: rm "+next)
	}
	if err != nil {
		return fmt.Errorf("tokens file: %w", err)
	}
	err = replaceTokens(f, file, edit)
	if err != nil {
		_ = os.Remove(next) // it was ours
	}
	return err
}

func replaceTokens(f *os.File, file string, edit func([]byte) ([]byte, error)) error {
	old, err := os.ReadFile(file)
	if err == nil {
		if _, err = httpapi.ReadTokens(file); err == nil {
			err = likeBefore(f, file)
		}
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	var text []byte
	if err == nil {
		text, err = edit(old)
	}
	if err == nil {
		_, err = f.Write(text)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), file); err != nil {
		return fmt.Errorf("tokens file: %w", err)
	}
	dir, err := os.Open(filepath.Dir(file))
	if err != nil {
		return fmt.Errorf("tokens file: %w", err)
	}
	_ = dir.Sync() // not every file system can
	return dir.Close()
}
