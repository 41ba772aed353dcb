package serve

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"github.com/gin-gonic/gin"

	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/queue"
	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/runner/sandbox"
)

// refusal is the body of an error response that concerns no field.
type refusal struct {
	Detail string `json:"detail"`
	Code   string `json:"code"`
}

func refuse(c *gin.Context, status int, code, detail string) {
	c.AbortWithStatusJSON(status, refusal{detail, code})
}

func refuseFields(c *gin.Context, field, message string) {
	var refused runner.FieldErrors
	refused.Add(message, field)
	refuseRequest(c, &refused)
}

// refuseRequest responds to an invalid request: 400 keyed by field, or 403.
func refuseRequest(c *gin.Context, err error) {
	var fields *runner.FieldErrors
	var forbidden forbiddenError
	switch {
	case errors.As(err, &fields):
		c.AbortWithStatusJSON(http.StatusBadRequest, fields)
	case errors.As(err, &forbidden):
		refuse(c, http.StatusForbidden, "forbidden", forbidden.reason)
	default:
		refuse(c, http.StatusBadRequest, "invalid", err.Error())
	}
}

// refuseSubmission responds for an execution without a result.
func (s *Server) refuseSubmission(c *gin.Context, err error) {
	var fields *runner.FieldErrors
	var store *redisconn.Error
	var denied *minter.DeniedError
	var missing *sandbox.MissingError
	switch {
	case errors.As(err, &fields):
		refuseRequest(c, err)
	case errors.Is(err, queue.ErrFull), errors.Is(err, ErrQueueTimeout):
		c.Header("Retry-After", strconv.Itoa(s.config.Queue.RetryAfter()))
		refuse(c, http.StatusTooManyRequests, "busy", err.Error())
	case errors.Is(err, queue.ErrDraining):
		c.Header("Retry-After", "1")
		refuse(c, http.StatusServiceUnavailable, "draining", err.Error())
	case errors.Is(err, ErrConflict), errors.Is(err, ErrRan):
		refuse(c, http.StatusConflict, "conflict", err.Error())
	case errors.Is(err, execution.ErrCancelled), errors.Is(err, context.Canceled):
		refuse(c, http.StatusConflict, "cancelled", execution.ErrCancelled.Error())
	case errors.As(err, &denied):
		refuse(c, http.StatusForbidden, denied.Code, denied.Reason)
	case errors.As(err, &store):
		s.config.Log.ErrorContext(c.Request.Context(), "an execution could not be given a key", "error", err)
		c.Header("Retry-After", "1")
		refuse(c, http.StatusServiceUnavailable, "store_unavailable", err.Error())
	case errors.Is(err, runner.ErrNoPython), errors.Is(err, runner.ErrHarness), errors.As(err, &missing):
		s.config.Log.ErrorContext(c.Request.Context(), "an execution could not be started", "error", err)
		c.Header("Retry-After", "1")
		refuse(c, http.StatusServiceUnavailable, "runner_unavailable", err.Error())
	default:
		s.config.Log.ErrorContext(c.Request.Context(), "an execution failed", "error", err)
		refuse(c, http.StatusInternalServerError, "internal", "the sidecar failed; its log says why")
	}
}
