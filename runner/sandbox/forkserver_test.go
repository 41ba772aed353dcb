package sandbox

import (
	"context"
	"encoding/json"
	"os"
	"slices"
	"testing"
)

// forkServerVariable holds the harness's fork server, which the tests as an ordinary user could not read.
const forkServerVariable = "KIZEN_TEST_FORK_SERVER"

// forkServer is a Python that serves forks as the harness does; each executes what it is told on its last descriptor.
const forkServer = `
import json, os
*files, told = serve(3)
argv, env = json.loads(os.read(told, 1 << 20))
os.close(told)
for i, fd in enumerate(files):
    os.dup2(fd, 3 + i)
os.execve(argv[0], argv, dict(variable.split("=", 1) for variable in env or ()))
`

// start starts a program as the test's sandbox does: directly, or as a fork of a server's, which stop ends.
func start(ctx context.Context, t *testing.T, s *Sandbox, spec Spec) (process *Process, stop func(), err error) {
	if _, forks := forking.Load(s); !forks {
		process, err = s.Start(ctx, spec)
		return process, func() {}, err
	}
	if err := spec.validate(); err != nil {
		return nil, nil, err
	}
	server := spec
	server.Argv = []string{python, "-I", "-S", "-c", os.Getenv(forkServerVariable) + forkServer}
	server.Env = []string{"PATH=/usr/bin:/bin", "HOME=/tmp", "LANG=C.UTF-8"}
	server.Files, server.Stdout, server.Stderr = nil, os.Stderr, os.Stderr
	f, err := s.StartForkServer(t.Context(), server)
	if err != nil {
		return nil, nil, err
	}
	told, tell, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = told.Close(), tell.Close() }()
	if err := json.NewEncoder(tell).Encode([]any{spec.Argv, spec.Env}); err != nil {
		t.Fatal(err)
	}
	spec.Files = append(slices.Clone(spec.Files), told)
	if process, err = f.Fork(ctx, spec); err != nil {
		f.Kill()
		f.Wait()
	}
	return process, func() { f.Kill(); f.Wait() }, err
}
