package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

const description = `What orphanwatch knows and does. Every answer is {"success": bool, "data": …, "message": string}.

Tokens go into the header Authorization: Bearer TOKEN. A token has the scopes that it lists (read, cleanup, purge, admin); admin has all.
Errors: 400 and 422 name the parameter; 401 no valid token; 403 the scope is missing; 409 the guard, a pause or another cleanup holds it; 413; 429 with Retry-After; 503 a store cannot be reached.`

const securityScheme = "bearer"

func newHuma(a *api, version string) huma.API {
	config := huma.DefaultConfig("orphanwatch", version)
	config.CreateHooks = nil // $schema in every body
	// Its own routes: a page with scripts from elsewhere, and four spellings of the document.
	config.OpenAPIPath, config.DocsPath, config.SchemasPath = "", "", ""
	config.Info.Description = description
	config.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		securityScheme: {Type: "http", Scheme: "bearer", Description: "a static token owt_…, or a JWT of the application (HS256)"},
	}
	return humago.New(a, config)
}

// handle adds a route. Its scope is what admits to it, and what the document says.
func handle[I, O any](a *api, scope Scope, op huma.Operation, h func(context.Context, *I) (*output[O], error)) {
	rt := &route{pattern: op.Method + " " + op.Path, scope: scope, limits: a.reads, order: op.Method != http.MethodGet}
	op.MaxBodyBytes = maxBody + 1 // checkBody has limited it
	op.Errors = []int{400, 422, 500, 503}
	op.Security = []map[string][]string{}
	if scope != public {
		op.Errors = append(op.Errors, 401, 403, 429)
		op.Security = []map[string][]string{{securityScheme: {string(scope)}}}
	}
	if rt.order {
		rt.limits = a.orders
		op.Errors = append(op.Errors, 408, 409, 413, 415)
	}
	op.OperationID = strings.Trim(strings.NewReplacer("/api/v1/", "", "/", "-", "{id}", "task").Replace(op.Path), "-")
	a.routes[rt.pattern] = rt
	huma.Register(a.huma, op, func(ctx context.Context, in *I) (*output[O], error) {
		out, err := h(ctx, in)
		if err != nil {
			return nil, a.failed(ctx, err)
		}
		return out, nil
	})
	item := a.huma.OpenAPI().Paths[op.Path]
	documented := item.Get
	if rt.order {
		documented = item.Post
	}
	for _, p := range documented.Parameters {
		if p.In == "path" {
			rt.pathParams = append(rt.pathParams, p.Name)
		} else {
			rt.queryParams = append(rt.queryParams, p.Name)
		}
	}
	rt.hasBody = documented.RequestBody != nil
}

// addProbes adds what is served without huma, and the document, which is then complete.
func (a *api) addProbes() {
	plain := func(path, summary, contentType string, h http.HandlerFunc) {
		pattern := http.MethodGet + " " + path
		a.routes[pattern] = &route{pattern: pattern, scope: public}
		a.mux.HandleFunc(pattern, h)
		content := map[string]*huma.MediaType{contentType: {}}
		responses := map[string]*huma.Response{"200": {Description: "OK", Content: content}}
		if path == "/readyz" || path == "/livez" {
			responses["503"] = &huma.Response{Description: "Service Unavailable", Content: content}
		}
		a.huma.OpenAPI().AddOperation(&huma.Operation{
			Method: http.MethodGet, Path: path, Summary: summary, OperationID: strings.Trim(path, "/"),
			Security: []map[string][]string{}, Responses: responses,
		})
	}
	answer := func(ask func() (ok bool, why string)) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			ok, why := ask()
			status := http.StatusOK
			if !ok {
				status = http.StatusServiceUnavailable
			}
			writeJSON(w, status, probe{ok, why})
		}
	}
	plain("/livez", "Whether the process lives, and none of its loops hangs; depends on no store", "application/json", answer(a.o.Alive))
	plain("/readyz", "Whether the sources are subscribed, or the copy stands by", "application/json", answer(a.o.Ready))
	plain("/metrics", "Metrics, as Prometheus reads them", "text/plain", a.o.Metrics.ServeHTTP)
	var document []byte
	plain("/openapi.json", "This document", "application/openapi+json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/openapi+json")
		_, _ = w.Write(document) // the client is gone: nobody to tell
	})
	document, _ = json.MarshalIndent(a.huma.OpenAPI(), "", "  ") // a test reads it
}

// probe is the body of the probes.
type probe struct {
	Success bool   `json:"success"`
	Message string `json:"message"`
}
