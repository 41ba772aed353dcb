package serve

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"

	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/runner"
)

// Once records which executions have started. It keeps the records longer than results, and shares them with all
// processes that use the same store; see [tombstone.Store].
type Once interface {
	// Begin records that the code of an execution starts now. It returns false if it has already started.
	Begin(ctx context.Context, business, id, digest string) (bool, error)
	// Begun reports whether the code has started.
	Begun(ctx context.Context, business, id string) (bool, error)
}

// ErrRan is the error for an ID that has run and whose result this process does not have.
var ErrRan = errors.New("an execution with this id has run, and this process does not have its result; use a new id for a new attempt")

// once wraps a request so that it runs only if its ID has not run before. The registry handles the IDs that it knows.
func (s *Server) once(ctx context.Context, request *execution.Request, body []byte) error {
	id := request.Identity
	if _, known := s.config.Executions.Get(id.BusinessID, id.ExecutionID); known {
		return nil
	}
	begun, err := s.config.Once.Begun(ctx, id.BusinessID, id.ExecutionID)
	switch {
	case err != nil:
		return err
	case begun:
		return ErrRan
	}
	digest := sha256.Sum256(body)
	request.Starting = func(ctx context.Context) error {
		first, err := s.config.Once.Begin(ctx, id.BusinessID, id.ExecutionID, hex.EncodeToString(digest[:]))
		if err != nil || first {
			return err
		}
		var refused runner.FieldErrors
		refused.Add("has meanwhile run in another process; use a new id for a new attempt", "execution_id")
		return &refused
	}
	return nil
}
