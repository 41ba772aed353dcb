package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/kizen/kizen-sidecar/internal/crowd"
	"github.com/kizen/kizen-sidecar/internal/exit"
	"github.com/kizen/kizen-sidecar/internal/hosts"
	"github.com/kizen/kizen-sidecar/internal/peer"
	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/internal/serve"
)

// Server is an HTTP server with its listener.
type Server struct {
	// URL is the server's address.
	URL string

	http     *http.Server
	listener net.Listener
}

// CheckAddress returns a usage error if the value of a flag is not an address to listen on.
func CheckAddress(flag, address string) error {
	_, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return exit.Usagef("%s %q is not an address; write it like 127.0.0.1:8378", flag, address)
	}
	return nil
}

// Bind listens on the address that a flag names. It accepts the given number of connections whose callers wait for
// responses, and [crowd.Extra] more.
func Bind(flag, address string, waiting int, server *http.Server) (*Server, error) {
	if err := CheckAddress(flag, address); err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w; free it, or choose another", flag, address, withoutAddress(err))
	}
	listener = crowd.New(waiting + crowd.Extra).Listener(listener)
	server.Handler = crowd.Handler(server.Handler)
	inner := server.ConnContext
	server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if inner != nil {
			ctx = inner(ctx, c)
		}
		return crowd.ConnContext(ctx, c)
	}
	scheme := "http"
	if server.TLSConfig != nil {
		listener, scheme = tls.NewListener(listener, server.TLSConfig), "https"
	}
	return &Server{scheme + "://" + listener.Addr().String(), server, listener}, nil
}

// BindAdmin listens on the address of --admin-listen, for operators. If guard is not nil, it refuses connections of
// steps.
func BindAdmin(address string, names hosts.Names, guard *peer.Guard, config serve.AdminConfig) (*Server, error) {
	server := &http.Server{
		Handler:           names.Require(serve.AdminHandler(config)),
		ReadHeaderTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
	}
	if guard != nil {
		server.Handler, server.ConnContext = guard.Require(server.Handler), guard.ConnContext
	}
	return Bind("--admin-listen", address, 0, server)
}

// withoutAddress removes the address from an error of net.Listen, because our message contains it.
func withoutAddress(err error) error {
	if failed, ok := errors.AsType[*net.OpError](err); ok && failed.Err != nil {
		return failed.Err
	}
	return err
}

// serve answers requests until the server is closed or shut down.
func (s *Server) serve() error {
	err := s.http.Serve(s.listener)
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve on %s: %w", s.listener.Addr(), err)
}

// Start answers requests until stop is called. If it fails before that, it logs an error.
func (s *Server) Start(log *slog.Logger) (stop func()) {
	var serving routine.Group
	serving.Go(func() {
		if err := s.serve(); err != nil {
			log.Error("the admin listener has failed", "error", err)
		}
	})
	return func() {
		s.Close()
		serving.Wait()
	}
}

// Close stops listening and cuts every connection. A server that was never started can be closed too.
func (s *Server) Close() {
	_ = s.http.Close() // a caller that is cut off retries
	_ = s.listener.Close()
}

// shutdown stops listening and lets requests finish until ctx ends, then cuts them.
func (s *Server) shutdown(ctx context.Context) {
	if err := s.http.Shutdown(ctx); err != nil {
		_ = s.http.Close() // a caller that still reads is cut off
	}
}
