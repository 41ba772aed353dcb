package execution

import (
	"context"
	"net"
	"time"

	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/runner"
)

// The interfaces below are the parts of the key and of the interpreter that an execution uses. Tests replace them.

// keyStore leases the key of one execution. The error is that of [minter.Minter.Lease].
type keyStore interface {
	lease(ctx context.Context, id minter.Identity, lifetime time.Duration) (lease, error)
}

// lease is a signed key that is valid until Close; see [minter.Lease].
type lease interface {
	Key(ctx context.Context) (string, error)
	Renew(ctx context.Context, stale string) (string, error)
	Close(ctx context.Context) error
}

// interpreters provides sandboxed Pythons; see [Interpreters].
type interpreters interface {
	prepare(ctx context.Context, runtime runner.Runtime, limits runner.Limits) (interpreter, error)
}

// interpreter is a sandboxed Python that ends with Run or Discard; see [runner.Prepared].
type interpreter interface {
	Listener() net.Listener
	Run(ctx context.Context, job runner.Execution) (runner.Result, error)
	Discard() (stdout, stderr string)
}

// minterAdapter leases keys from a minter.
type minterAdapter struct{ *minter.Minter }

func (m minterAdapter) lease(ctx context.Context, id minter.Identity, lifetime time.Duration) (lease, error) {
	leased, err := m.Lease(ctx, id, lifetime)
	if err != nil {
		return nil, err // a nil *minter.Lease would be a non-nil lease
	}
	return leased, nil
}

// interpretersAdapter gets interpreters from a runner or a pool.
type interpretersAdapter struct{ Interpreters }

func (s interpretersAdapter) prepare(ctx context.Context, runtime runner.Runtime, limits runner.Limits) (interpreter, error) {
	prepared, err := s.Prepare(ctx, runtime, limits)
	if err != nil {
		return nil, err
	}
	return prepared, nil
}
