package httpapi

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxBody is how large, in bytes, the body of a request may be.
const maxBody = 64 << 10

// maxText is how long, in bytes, a parameter may be.
const maxText = 512

// checkRequest refuses what huma would pass over: a parameter that does not exist or
// has no value (a mistyped ?dry_run= must not become a cleanup), text that the stores
// cannot hold, a body where none is read.
func (rt *route) checkRequest(w http.ResponseWriter, r *http.Request) *Problem {
	if err := rt.checkQuery(r.URL.RawQuery); err != nil {
		return err
	}
	for _, name := range rt.pathParams {
		if err := checkText(name, r.PathValue(name)); err != nil {
			return err
		}
	}
	return rt.checkBody(w, r)
}

func (rt *route) checkQuery(raw string) *Problem {
	query, err := url.ParseQuery(raw)
	if err != nil {
		return problem(http.StatusBadRequest, "the query cannot be read: %s", err)
	}
	for _, name := range slices.Sorted(maps.Keys(query)) {
		switch values := query[name]; {
		case !slices.Contains(rt.queryParams, name):
			return problem(http.StatusUnprocessableEntity, "%q is not a parameter of this route; it takes %s", shown(name), orNone(rt.queryParams))
		case len(values) > 1:
			return problem(http.StatusUnprocessableEntity, "%s: is given more than once", name)
		case values[0] == "":
			return problem(http.StatusUnprocessableEntity, "%s: has no value; write %s=VALUE, or leave it out", name, name)
		default:
			if err := checkText(name, values[0]); err != nil {
				return err
			}
		}
	}
	return nil
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// checkText refuses what no key, id or table name in the stores can be.
func checkText(name, value string) *Problem {
	switch {
	case len(value) > maxText:
		return problem(http.StatusUnprocessableEntity, "%s: is longer than %d bytes", name, maxText)
	case !utf8.ValidString(value) || strings.ContainsFunc(value, unicode.IsControl):
		return problem(http.StatusUnprocessableEntity, "%s: is not plain text in UTF-8", name)
	}
	return nil
}

// checkBody reads the body, since huma would take what breaks off for our own fault.
func (rt *route) checkBody(w http.ResponseWriter, r *http.Request) *Problem {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	var network net.Error
	switch {
	case errors.As(err, &tooLarge):
		return problem(http.StatusRequestEntityTooLarge, "the body is larger than %d bytes", maxBody)
	case errors.As(err, &network) && network.Timeout():
		return problem(http.StatusRequestTimeout, "the body did not arrive in time")
	case err != nil:
		return problem(http.StatusBadRequest, "the body cannot be read")
	}
	if text := bytes.TrimSpace(body); !rt.hasBody && len(text) > 0 && string(text) != "{}" {
		return problem(http.StatusBadRequest, "this route takes no body; its parameters (%s) go into the query", orNone(rt.queryParams))
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	return nil
}
