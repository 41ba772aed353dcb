package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
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

// bind listens at the address that a flag names.
func bind(flag, address string, with *http.Server) (*server, error) {
	if err := checkAddress(flag, address); err != nil {
		return nil, err
	}
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
