// The admin listener serves liveness, readiness and metrics, separately from the data path.
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

// checkLimit limits the duration of the checks of one /readyz.
const checkLimit = 3 * time.Second

// Check returns why the sidecar is not ready, or nil.
type Check func(context.Context) error

// AdminConfig configures [AdminHandler].
type AdminConfig struct {
	// Ready holds the checks of /readyz, by name.
	Ready map[string]Check
	// Metrics serves /metrics; may be nil.
	Metrics http.Handler
	// Details, if not nil, returns further data for /readyz.
	Details func() any
}

// AdminHandler serves /healthz, /readyz and /metrics.
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

// readiness is the response of /readyz.
type readiness struct {
	Status  string            `json:"status"` // "ok" or "not ready"
	Checks  map[string]string `json:"checks"` // "ok" or an error
	Details any               `json:"details,omitempty"`
}

// ready runs all checks concurrently: 200 if all pass, 503 otherwise.
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
	_ = json.NewEncoder(w).Encode(body) // the client may have disconnected
}
