package serve

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"

	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/runner"
)

// Once remembers which executions have started, for longer than their results are kept and for every process that shares its store.
// [tombstone.Store] is one.
type Once interface {
	// Begin writes down that the code of an execution starts now. It is false if it has started before.
	Begin(ctx context.Context, business, id, digest string) (bool, error)
	// Begun reports whether it has started.
	Begun(ctx context.Context, business, id string) (bool, error)
}

// ErrRan: the id has run, and its result is no longer kept here, or was not here.
var ErrRan = errors.New("an execution with this id has run, and this process has no result of it; give a new attempt an id of its own")

// once has a request run only if its id has not run before. What the registry knows is for it to answer.
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
		refused.Add("has run meanwhile, in another process; give a new attempt an id of its own", "execution_id")
		return &refused
	}
	return nil
}
