package redisconn

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

// Error is a failure of Redis: the server, what happened, and what to do about it. It leaves the result of the
// operation open: treat a mint as failed, and a verification as a refusal.
type Error struct {
	Server string // "redis at 127.0.0.1:6379"; never with a password
	Reason string // what happened and what to do
	Err    error
}

// Error implements error.
func (e *Error) Error() string { return e.Server + " " + e.Reason }

// Unwrap returns go-redis's own error.
func (e *Error) Unwrap() error { return e.Err }

// boundary is a go-redis hook that adds a timeout to every command and explains its failure.
type boundary struct {
	server  string
	timeout time.Duration
	tls     bool
}

// DialHook implements redis.Hook.
func (b boundary) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook implements redis.Hook.
func (b boundary) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		ctx, cancel := context.WithTimeout(ctx, b.timeout)
		defer cancel()
		err := b.explain(next(ctx, cmd))
		cmd.SetErr(err)
		return err
	}
}

// ProcessPipelineHook implements redis.Hook.
func (b boundary) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		ctx, cancel := context.WithTimeout(ctx, b.timeout)
		defer cancel()
		err := next(ctx, cmds)
		for _, cmd := range cmds {
			cmd.SetErr(b.explain(cmd.Err()))
		}
		return b.explain(err)
	}
}

func (b boundary) explain(err error) error {
	if err == nil || errors.Is(err, redis.Nil) {
		return err
	}
	var known *Error
	if errors.As(err, &known) {
		return err
	}
	return &Error{Server: b.server, Reason: b.reason(err), Err: err}
}

// replies maps the first word of a Redis error to an explanation and what to do about it.
var replies = []struct{ prefix, reason string }{
	{"NOAUTH", "wants a password; put user and password into the redis url"},
	{"WRONGPASS", "refused the user or the password; check those in the redis url"},
	{"NOPERM", "does not let this user do it; docs/redis.md names the ACL that is needed"},
	{"READONLY", "is a replica and cannot be written; point the redis url at the master, or use redis+sentinel://"},
	{"LOADING", "is still loading its data; try again"},
	{"MASTERDOWN", "is a replica that has lost its master; check the replication"},
	{"CLUSTERDOWN", "is a cluster that is down; check its nodes with redis-cli --cluster check"},
	{"MOVED", "is part of a cluster; use redis+cluster://"},
	{"OOM", "is out of memory; raise its maxmemory"},
	{"MISCONF", "cannot write to its disk; check its log"},
}

func (b boundary) reason(err error) string {
	var answer redis.Error
	var certificate *tls.CertificateVerificationError
	var header tls.RecordHeaderError
	var dns *net.DNSError
	var remote *net.OpError
	var timeout net.Error
	silent := errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
	switch {
	case errors.Is(err, context.Canceled):
		return "had not answered when the call was cancelled"
	case !silent && strings.Contains(err.Error(), "all sentinels specified in configuration are unreachable"):
		return "cannot be found: no sentinel answers for it; check the redis url and the sentinels"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused the connection; start one there, or correct the redis url"
	case errors.As(err, &dns):
		return fmt.Sprintf("cannot be found: no address for %q; check the redis url", dns.Name)
	case errors.As(err, &certificate):
		return "showed a certificate that is not trusted; check the CA file and the host name: " + certificate.Err.Error()
	case errors.As(err, &remote) && remote.Op == "remote error":
		return "refused our client certificate; check the certificate and key files: " + remote.Err.Error()
	case errors.As(err, &header):
		return "does not speak TLS; write redis:// for rediss://, or enable TLS there"
	case silent:
		if b.tls { // a Redis without TLS treats the handshake as a command and waits for its rest
			return fmt.Sprintf("did not answer within %s; check that it is up, reachable and speaks TLS, or raise --redis-timeout", b.timeout)
		}
		return fmt.Sprintf("did not answer within %s; check that it is up and reachable, or raise --redis-timeout", b.timeout)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		if b.tls { // TLS 1.3 refuses a client after its handshake, and data sent in the meantime can hide the reason
			return "closed the connection; if it refused our client certificate, check the certificate and key files, and its log"
		}
		return "closed the connection; check whether it wants TLS (rediss://) and its log"
	case errors.As(err, &answer):
		for _, row := range replies {
			if strings.HasPrefix(answer.Error(), row.prefix) {
				return row.reason
			}
		}
	}
	return "failed: " + err.Error()
}
