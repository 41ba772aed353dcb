package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"

	"github.com/kizen/kizen-sidecar/internal/crowd"
)

// server is an HTTP server and where it listens.
type server struct {
	*http.Server
	listener net.Listener
	url      string
}

func (s *server) serve() error {
	err := s.Serve(s.listener)
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve on %s: %w", s.listener.Addr(), err)
}

// checkAddress says what keeps the text of a flag from being an address to
// listen on.
func checkAddress(flag, text string) error {
	_, port, err := net.SplitHostPort(text)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return usagef("%s %q is not an address; write it like 127.0.0.1:8378", flag, text)
	}
	return nil
}

// bind listens at the address that a flag names. waiting is how many callers may wait for their answers at once.
func bind(flag, address string, waiting int, with *http.Server) (*server, error) {
	if err := checkAddress(flag, address); err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w; free it, or choose another", flag, address, unwrapListen(err))
	}
	listener = crowd.New(waiting + crowd.Extra).Listener(listener)
	inner := with.ConnContext
	with.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if inner != nil {
			ctx = inner(ctx, c)
		}
		return crowd.ConnContext(ctx, c)
	}
	scheme := "http"
	if with.TLSConfig != nil {
		listener, scheme = tls.NewListener(listener, with.TLSConfig), "https"
	}
	return &server{with, listener, scheme + "://" + listener.Addr().String()}, nil
}

// unwrapListen takes away the address that a message of ours says itself.
func unwrapListen(err error) error {
	var cause *net.OpError
	if errors.As(err, &cause) && cause.Err != nil {
		return cause.Err
	}
	return err
}
