package execution

import (
	"errors"
	"testing"

	"github.com/kizen/kizen-sidecar/minter"
)

// TestTheKeyIsNotUsedOnceTheFenceIsClosed: this holds although its lease is open.
func TestTheKeyIsNotUsedOnceTheFenceIsClosed(t *testing.T) {
	closed := errors.New("another worker may take over")
	keys := lateKeys{fence: func() error { return closed }}
	var leased lease = &minter.Lease{}
	keys.lease.Store(&leased)
	var unavailable *minter.UnavailableError
	if key, err := keys.Key(t.Context()); key != "" || !errors.As(err, &unavailable) || !errors.Is(err, closed) {
		t.Errorf("key %q, %v", key, err)
	}
	if key, err := keys.Renew(t.Context(), "stale"); key != "" || !errors.As(err, &unavailable) ||
		!errors.Is(err, closed) {
		t.Errorf("renewed key %q, %v", key, err)
	}
}
