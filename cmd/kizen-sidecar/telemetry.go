package main

import (
	"context"
	"time"

	"github.com/kizen/kizen-sidecar/internal/buildinfo"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// flushLimit bounds how long the end of a command waits for a collector.
const flushLimit = 2 * time.Second

// observe starts traces and metrics as the OTEL_* variables say. The function
// it returns sends what is left; a collector that does not take it is logged.
func (a *app) observe(ctx context.Context, prometheus, oneShot bool) (*telemetry.Telemetry, func(), error) {
	started, err := telemetry.Start(ctx, telemetry.Config{
		Service: "kizen-sidecar", Version: buildinfo.Version(), Logger: a.log, Prometheus: prometheus, OneShot: oneShot,
	})
	if err != nil {
		return nil, nil, err
	}
	return started, func() {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushLimit)
		defer cancel()
		if err := started.Shutdown(limited); err != nil {
			a.log.Debug("the last telemetry was not sent", "error", err)
		}
	}, nil
}
