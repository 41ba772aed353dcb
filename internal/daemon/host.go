package daemon

import (
	"context"

	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/audit"
	"github.com/kizen/kizen-sidecar/internal/clocks"
	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/internal/serve"
	"github.com/kizen/kizen-sidecar/minter"
)

// HostConfig configures a [Host].
type HostConfig struct {
	// Execution configures the executions. Open sets its Audit.
	Execution execution.Config
	// Embedded is this process's own Redis, if Execution.Redis uses it; otherwise nil.
	Embedded *redisconn.Embedded
	// Audit is the audit file. If nil, calls are not recorded.
	Audit *audit.File
}

// Host is a host of executions with the resources that it uses.
type Host struct {
	Executions *execution.Host
	config     HostConfig
}

// Open returns a host that owns Redis and the audit file of config. If Open fails, it closes them.
func Open(config HostConfig) (*Host, error) {
	if config.Audit != nil {
		config.Execution.Audit = config.Audit
	}
	h := &Host{config: config}
	var err error
	if h.Executions, err = execution.NewHost(config.Execution); err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

// Embedded reports whether Redis is embedded in this process.
func (h *Host) Embedded() bool { return h.config.Embedded != nil }

// Redis returns the client of the host's Redis.
func (h *Host) Redis() redis.UniversalClient { return h.config.Execution.Redis }

// Revoke revokes the keys of an execution whose process has died.
func (h *Host) Revoke(ctx context.Context, businessID, executionID string) error {
	_, err := minter.NewRevoker(h.Redis()).Execution(ctx, businessID, executionID)
	return err
}

// Follow reloads the signing keys when their files change, reopens the audit file, and watches the clock of Redis,
// until stop is called; stop waits for all of them to end. SIGHUP triggers the first two.
func (h *Host) Follow(ctx context.Context) (stop func()) {
	c := h.config.Execution
	stops := []func(){
		c.Keys.Follow(ctx, h.reloaded, func(err error) {
			c.Log.Warn("changes to the signing keys cannot be detected; send SIGHUP after a change", "error", err)
		}),
		h.config.Audit.Follow(c.Log),
	}
	if !h.Embedded() {
		stops = append(stops, clocks.Watch(ctx, c.Redis, c.Log))
	}
	return func() {
		for _, stop := range stops {
			stop()
		}
	}
}

// reloaded logs the result of a reload of the signing keys.
func (h *Host) reloaded(err error) {
	c := h.config.Execution
	if err != nil {
		c.Log.Error("the signing keys could not be reloaded; the previous ones stay in use", "error", err)
		return
	}
	c.Log.Info("signing keys loaded", "current", c.Keys.Current())
}

// Checks returns the readiness checks of what the host uses, except those of Redis.
func (h *Host) Checks() map[string]serve.Check {
	checks := map[string]serve.Check{}
	if h.config.Audit != nil {
		checks["audit"] = func(context.Context) error { return h.config.Audit.Ready() }
	}
	return checks
}

// Close closes Redis and the audit file. It logs errors, because results of executions stay valid.
func (h *Host) Close() {
	_ = h.Redis().Close() // no command is in flight
	if h.config.Embedded != nil {
		h.config.Embedded.Close()
	}
	if h.config.Audit != nil {
		h.config.Audit.Close(h.config.Execution.Log)
	}
}
