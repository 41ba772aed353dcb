package peer

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
)

// Guard rejects connections of steps to an HTTP server. A step that shares the machine's network can connect to every
// listener on loopback, but cannot hide the owner of its socket.
type Guard struct {
	// FromStep reports whether a socket belongs to a step.
	FromStep func(Owner) bool
	// Log logs once if the kernel does not name the owner. If nil, logging is disabled.
	Log *slog.Logger

	blind sync.Once
}

type contextKey struct{}

// ConnContext is the ConnContext of an http.Server. It marks the connections of steps.
func (g *Guard) ConnContext(ctx context.Context, connection net.Conn) context.Context {
	return context.WithValue(ctx, contextKey{}, g.refuses(connection))
}

func (g *Guard) refuses(connection net.Conn) bool {
	owner, err := Of(connection)
	switch {
	case err == nil:
		return g.FromStep(owner)
	case errors.Is(err, ErrClosed):
		return true // real callers wait for the response; a connection that closed at once may have been a step's
	case errors.Is(err, ErrNotLocal):
		remote := address(connection.RemoteAddr())
		// The other end was a socket of this machine and is closed.
		return remote.IsValid() && remote.Addr().IsLoopback()
	}
	g.blind.Do(func() {
		if g.Log != nil {
			g.Log.Warn("the kernel does not name the owner of a connection, so connections of steps are refused only because they have no token", "error", err)
		}
	})
	return false
}

// Require passes on requests that do not come from a step, and answers others with 403.
func (g *Guard) Require(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if refused, _ := r.Context().Value(contextKey{}).(bool); refused {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Connection", "close")
			w.WriteHeader(http.StatusForbidden)
			// The client may have disconnected.
			_, _ = io.WriteString(w, `{"detail":"a step may not call the sidecar that runs it","code":"from_step"}`+"\n")
			return
		}
		next.ServeHTTP(w, r)
	})
}
