package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// stallLimit is the limit of the steps during which the sidecar is stopped for longer than that.
const stallLimit = 2 * time.Second

// stalledStep runs body after the sidecar was stopped, and closes its connection when the step's process ends.
func stalledStep(address, body string) string {
	host, port, _ := net.SplitHostPort(address)
	return fmt.Sprintf("import socket, sys\nc = socket.create_connection((%q, %s))\nc.sendall(b'x')\nc.recv(1)\n%s\n",
		host, port, body)
}

// stall stops the process while a step runs, until the step has ended or more than its limit has passed.
func stall(t *testing.T, listener net.Listener, pid func() int) {
	c, err := listener.Accept()
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = c.Close() }()
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Error(err)
	}
	begun := time.Now()
	if err := syscall.Kill(pid(), syscall.SIGSTOP); err != nil {
		t.Error(err)
	}
	_, _ = c.Write([]byte("x"))
	_ = c.SetReadDeadline(begun.Add(stallLimit + time.Second))
	_, _ = io.ReadFull(c, make([]byte, 1))                      // ends with the step, or the deadline
	time.Sleep(time.Until(begun.Add(stallLimit + time.Second))) // the stall itself
	if err := syscall.Kill(pid(), syscall.SIGCONT); err != nil {
		t.Error(err)
	}
}

// TestAStoppedSidecarDoesNotChangeTheOutcomeOfAStep stops the sidecar for longer than the step's limit. Only a step
// that ran too long itself times out.
func TestAStoppedSidecarDoesNotChangeTheOutcomeOfAStep(t *testing.T) {
	t.Parallel()
	rows := map[string]struct{ body, says string }{
		"in time":              {"outputs.x = 'done'", "done"},
		"a large result":       {"outputs.x = 'done' * 10**6", "donedonedone"},
		"failed in time":       {"raise ValueError('in time')", "ValueError: in time"},
		"died in time":         {"import os; os._exit(7)", "left with code 7"},
		"ran beyond its limit": {"while True: pass", "timeout"},
	}
	listen := func(t *testing.T) net.Listener {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = listener.Close() })
		return listener
	}
	for name, row := range rows {
		t.Run("run, "+name, func(t *testing.T) {
			listener := listen(t)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			command := sidecartest.Command(ctx, nil, "run", "--script", "-", "--json", "--declare-output", "x:string",
				"--network", "host", "--timeout", stallLimit.String())
			command.Stdin = strings.NewReader(stalledStep(listener.Addr().String(), row.body))
			var out bytes.Buffer
			command.Stdout = &out
			if err := command.Start(); err != nil {
				t.Fatal(err)
			}
			stall(t, listener, func() int { return command.Process.Pid })
			_ = command.Wait() // the row has the wanted exit code
			if !strings.Contains(out.String(), row.says) {
				t.Errorf("got %.500s", out.String())
			}
		})
	}
	for _, warm := range []string{"0", "1"} {
		s := startServe(t, "--network", "host", "--warm", warm, "--timeout", stallLimit.String(), "--api-root",
			"http://127.0.0.1:1/api")
		for _, name := range []string{"in time", "died in time"} {
			row := rows[name]
			t.Run("serve --warm "+warm+", "+name, func(t *testing.T) {
				listener := listen(t)
				answered := make(chan answer, 1)
				go func() {
					got, err := s.try(t.Context(), "b-1", "POST", "/api/coderunner/run", step{
						"runtime": "python-3-13", "output_types": map[string]string{"x": "s"},
						"user_script": stalledStep(listener.Addr().String(), row.body),
					})
					if err != nil {
						t.Error(err)
					}
					answered <- got
				}()
				stall(t, listener, func() int { return s.Process.Pid })
				if got := <-answered; !strings.Contains(got.body, row.says) {
					t.Errorf("got %d %.500s", got.status, got.body)
				}
			})
		}
	}
}
