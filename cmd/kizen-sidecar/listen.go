package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
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

// bind listens at the address that a flag names.
func bind(flag, address string, with *http.Server) (*server, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w; free it, or choose another", flag, address, unwrapListen(err))
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
