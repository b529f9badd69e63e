package celery

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// What one call of look.lua is asked and may answer, so that it stays far below
// 5 ms, and how many calls go in one pipeline.
const (
	lookKeys  = 400
	lookBytes = 256 << 10
	lookCalls = 16
)

// asked is one call of look.lua: keys, and what each is of.
type asked struct {
	keys  []string
	kinds []byte
	looks []int
}

func (a *asked) add(look int, kind byte, key string) {
	a.keys = append(a.keys, key)
	a.kinds = append(a.kinds, kind)
	a.looks = append(a.looks, look)
}

// from is what is left to ask from the i-th key on.
func (a asked) from(i int) asked {
	return asked{a.keys[i:], a.kinds[i:], a.looks[i:]}
}

const (
	recordLetter    = 'r'
	resultLetter    = 's'
	companionLetter = 'c'
)

// recordRevived is the evidence of a record whose row has been seen since.
const recordRevived = "revived"

// Look reads what Redis holds of each subject. Results are found under every
// spelling of the id, under the seen one too. Only strings count as results.
func (s *Store) Look(ctx context.Context, looks []reconciler.Look) ([]reconciler.Found, error) {
	found := make([]reconciler.Found, len(looks))
	todo, err := s.ask(looks)
	if err != nil {
		return nil, err
	}
	for len(todo) > 0 {
		now := todo[:min(lookCalls, len(todo))]
		calls := make([]call, len(now))
		for i, a := range now {
			calls[i] = call{a.keys, []any{a.kinds, lookBytes}}
		}
		replies, err := lookScript.run(ctx, s.client, calls)
		if err != nil {
			return nil, failed("look", err)
		}
		todo = todo[len(now):]
		for i, a := range now {
			next, err := s.answer(a, found, replies[i])
			if err != nil {
				return nil, failed("look", err)
			}
			if next < len(a.keys) {
				todo = append(todo, a.from(next))
			}
		}
	}
	if err := s.describeLarge(ctx, found); err != nil {
		return nil, failed("look", err)
	}
	return found, nil
}

// ask cuts the looks into calls. In each, the most frequent spellings come first,
// then the records, then the rest: the script stops when it has met all that exist.
func (s *Store) ask(looks []reconciler.Look) ([]asked, error) {
	var all []asked
	var first, records, rest asked
	flush := func() {
		for _, a := range []asked{records, rest} {
			first.keys = append(first.keys, a.keys...)
			first.kinds = append(first.kinds, a.kinds...)
			first.looks = append(first.looks, a.looks...)
		}
		if len(first.keys) > 0 {
			all = append(all, first)
		}
		first, records, rest = asked{}, asked{}, asked{}
	}
	for i, l := range looks {
		if l.Subject.Kind == reconciler.Canary {
			continue
		}
		if l.Subject.Binding < 0 || l.Subject.Binding >= max(1, len(s.options.Bindings)) {
			return nil, fmt.Errorf("redis: look: no binding %d", l.Subject.Binding)
		}
		records.add(i, recordLetter, recordPrefix+s.Keys.recordID(l.Subject))
		s.Keys.candidates(l, func(kind reconciler.ArtifactKind, spelling int, key string) {
			to, letter := &rest, byte(companionLetter)
			if spelling == 0 {
				to = &first
			}
			if kind == reconciler.ResultKey {
				letter = resultLetter
			}
			to.add(i, letter, key)
		})
		if len(first.keys)+len(records.keys)+len(rest.keys) >= lookKeys {
			flush()
		}
	}
	flush()
	return all, nil
}

// answer puts a reply of look.lua where it belongs, and tells from which key on
// the script did not look.
func (s *Store) answer(a asked, found []reconciler.Found, reply any) (next int, err error) {
	list, ok := reply.([]any)
	if !ok || len(list)%4 != 1 {
		return 0, fmt.Errorf("look.lua: unexpected reply %T", reply)
	}
	end, _ := list[0].(int64)
	for f := list[1:]; len(f) > 0; f = f[4:] {
		index, _ := f[0].(int64)
		length, _ := f[1].(int64)
		head, _ := f[2].(string)
		tail, _ := f[3].(string)
		if index < 1 || index > int64(len(a.keys)) {
			return 0, fmt.Errorf("look.lua: index %d of %d", index, len(a.keys))
		}
		i := index - 1
		to := &found[a.looks[i]]
		if a.kinds[i] == recordLetter {
			fields := strings.SplitN(tail, "\n", 6)
			if len(fields) != 6 {
				return 0, fmt.Errorf("look.lua: a record of %d fields", len(fields))
			}
			to.Deleted = head == string(reconciler.Deleted)
			to.HoldUntil, to.Revoked, to.Ended = millis(fields[0]), fields[1] != "", fields[2] != ""
			to.Taken = fields[3] != "" && head != recordRevived
			to.Table, to.Key = fields[4], fields[5]
			continue
		}
		artifact := reconciler.Artifact{Kind: reconciler.CompanionKey, Key: a.keys[i], Stamp: reconciler.Stamp{Len: length, Head: head, Tail: tail}}
		if a.kinds[i] == resultLetter {
			artifact.Kind = reconciler.ResultKey
			if length <= reconciler.StampWhole {
				s.describe(&artifact, head)
			}
		}
		to.Artifacts = append(to.Artifacts, artifact)
	}
	return int(end) - 1, nil
}

// describe adds what the value of a result says.
func (s *Store) describe(a *reconciler.Artifact, value string) {
	v := ParseValue(strings.NewReader(value))
	a.Name, a.State, a.Ended = v.Name, v.Status, Terminal(v.Status)
	if s.byArgument {
		a.Refs = s.reader.ResultRefs(value, v.Name)
	}
}

// maxResult is up to which size, in bytes, a result's arguments are read.
const maxResult = 1 << 20

// describeLarge reads what results say that a stamp does not hold whole: as much as
// the bindings need. Where that is nothing, the beginning has the state.
func (s *Store) describeLarge(ctx context.Context, found []reconciler.Found) error {
	for i := range found {
		for j := range found[i].Artifacts {
			a := &found[i].Artifacts[j]
			if a.Kind != reconciler.ResultKey || a.Stamp.Len <= reconciler.StampWhole {
				continue
			}
			a.State = headStatus(a.Stamp.Head)
			a.Ended = Terminal(a.State)
			if !s.named {
				continue
			}
			pieces := &pieceReader{ctx: ctx, client: s.client, key: a.Key}
			if s.byArgument && a.Stamp.Len <= maxResult {
				value, err := io.ReadAll(pieces)
				if err != nil {
					return err
				}
				s.describe(a, string(value))
				continue
			}
			a.Name = ParseValue(bufio.NewReader(pieces)).Name
			if pieces.err != nil {
				return pieces.err
			}
		}
	}
	return nil
}

// headStatus is the state of a JSON result by its beginning, as Celery writes it.
func headStatus(head string) string {
	rest, ok := strings.CutPrefix(head, `{"status": "`)
	if !ok {
		return ""
	}
	status, _, _ := strings.Cut(rest, `"`)
	return status
}

// pieceReader reads a string in pieces that are short calls for the server. The
// value may change meanwhile: then its stamp does too, and nothing is removed.
type pieceReader struct {
	ctx    context.Context
	client redis.UniversalClient
	key    string
	at     int64
	piece  string
	err    error
}

const pieceBytes = 256 << 10

func (p *pieceReader) Read(b []byte) (int, error) {
	if p.piece == "" {
		p.piece, p.err = p.client.GetRange(p.ctx, p.key, p.at, p.at+pieceBytes-1).Result()
		if p.err != nil {
			return 0, p.err
		}
		if p.piece == "" {
			return 0, io.EOF
		}
		p.at += int64(len(p.piece))
	}
	n := copy(b, p.piece)
	p.piece = p.piece[n:]
	return n, nil
}

// millis reads a time in ms since 1970 as the scripts write it; zero for none.
func millis(s string) time.Time {
	ms, err := strconv.ParseInt(s, 10, 64)
	if err != nil || ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
