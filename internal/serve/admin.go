// Package admin answers operators, on a listener apart from the data path: is it alive, is it ready, what does it measure.
package serve

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"time"

	"maps"

	"github.com/kizen/kizen-sidecar/internal/routine"
)

// checkLimit bounds the checks of one /readyz.
const checkLimit = 3 * time.Second

// Check says why something is not ready; nil: it is.
type Check func(context.Context) error

// AdminConfig of a handler.
type AdminConfig struct {
	// Ready are the checks of /readyz, by what they are about.
	Ready map[string]Check
	// Metrics answers /metrics; nil: there is none.
	Metrics http.Handler
	// Details is shown by /readyz beside the checks; nil: nothing is.
	Details func() any
}

// AdminHandler answers /healthz, /readyz and /metrics.
func AdminHandler(config AdminConfig) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	mux.HandleFunc("GET /readyz", config.ready)
	if config.Metrics != nil {
		mux.Handle("GET /metrics", config.Metrics)
	}
	return mux
}

// readiness is the answer of /readyz.
type readiness struct {
	Status  string            `json:"status"` // "ok" or "not ready"
	Checks  map[string]string `json:"checks"` // "ok", or why not
	Details any               `json:"details,omitempty"`
}

// ready runs all checks at once: 200 when every one holds, 503 otherwise.
func (c AdminConfig) ready(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), checkLimit)
	defer cancel()
	names := slices.Sorted(maps.Keys(c.Ready))
	outcomes := make([]error, len(names))
	var all routine.Group
	for i, name := range names {
		all.Go(func() { outcomes[i] = c.Ready[name](ctx) })
	}
	all.Wait()
	answer, status := readiness{Status: "ok", Checks: map[string]string{}}, http.StatusOK
	for i, name := range names {
		answer.Checks[name] = "ok"
		if outcomes[i] != nil {
			answer.Checks[name] = outcomes[i].Error()
			answer.Status, status = "not ready", http.StatusServiceUnavailable
		}
	}
	if c.Details != nil {
		answer.Details = c.Details()
	}
	writeJSON(w, status, answer)
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the prober may have gone
}
