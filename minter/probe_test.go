package minter_test

import (
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/minter"
)

// Readiness is checked every few seconds, so a probe must delete everything that it writes.
func TestProbeLeavesNoKeys(t *testing.T) {
	server := redistest.Start(t)
	own, err := minter.GenerateKeySet()
	if err != nil {
		t.Fatal(err)
	}
	f := onRedis(t, server.URL())
	publishing, err := minter.New(minter.Config{Redis: f.redis, Keys: own})
	if err != nil {
		t.Fatal(err)
	}
	for name, probe := range map[string]func() error{
		"of a Redis":                             func() error { return minter.Probe(t.Context(), f.redis) },
		"of a minter whose keys are configured":  func() error { return f.minter.Probe(t.Context()) },
		"of a minter with a pair of the process": func() error { return publishing.Probe(t.Context()) },
	} {
		server.Do(t, "CONFIG", "RESETSTAT")
		if err := probe(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if stats := server.Do(t, "INFO", "commandstats"); !strings.Contains(stats, "cmdstat_set") {
			t.Errorf("%s wrote nothing: %s", name, stats)
		}
		if n, err := f.redis.DBSize(t.Context()).Result(); err != nil || n != 0 {
			t.Errorf("%s left %d keys, %v", name, n, err)
		}
	}
	server.Stop()
	if publishing.Probe(t.Context()) == nil || minter.Probe(t.Context(), f.redis) == nil {
		t.Error("the probe succeeds although Redis is unavailable")
	}
}
