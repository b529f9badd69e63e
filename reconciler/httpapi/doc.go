// Package httpapi is the HTTP side of the daemon: probes, metrics, and an API for
// what the command line can do.
//
// Nothing is served that its sender may not ask for: a route that has no scope is
// refused, and a request passes, in this order,
//
//	route (404, 405) -> who (401) -> how often (429) -> scope (403) -> parameters and
//	body (400, 408, 413, 415, 422) -> audit log -> service (409, 503)
//
// Every answer but those of /metrics and /openapi.json is {"success": bool, "data": …,
// "message": string}. No input of a client leads to a 5xx. An order is written down in the
// audit log before it is carried out, or it is not carried out. Nothing that is served or
// logged shows a secret: of tokens there are only digests here.
package httpapi
