package minter_test

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/testkit/attacks"
	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/minter"
)

func TestUnauthenticatedInputDoesNotCrashTheEmbeddedStore(t *testing.T) {
	store := embedded(t)
	f := onRedis(t, store.URL())
	for _, input := range attacks.UnauthenticatedInputs() {
		name, sent := input.Name, input.Sends
		conn, err := net.Dial("tcp", store.Addr())
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = io.WriteString(conn, sent) // it may be cut off before all of it is sent
		answer, err := io.ReadAll(conn)
		if text := string(answer); text != "" && !strings.HasPrefix(text, "-ERR Protocol error") ||
			errors.Is(err, io.ErrNoProgress) {
			t.Errorf("%s: answered %q, %v", name, answer, err)
		}
		_ = conn.Close()
		if code := f.verify(t, f.mint(t, someone)); code != "" {
			t.Fatalf("after %s a fresh key is refused: %s", name, code)
		}
	}
}

func TestCommandArgumentsDoNotCrashTheEmbeddedStore(t *testing.T) {
	store := embedded(t)
	password, _, _ := strings.Cut(strings.TrimPrefix(store.URL(), "redis://:"), "@")
	f := onRedis(t, store.URL())
	for _, input := range attacks.UnauthenticatedInputs() {
		name, sent := input.Name, input.Sends
		conn, err := net.Dial("tcp", store.Addr())
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = io.WriteString(conn, "*2\r\n$4\r\nAUTH\r\n$26\r\n"+password+"\r\n"+sent)
		answer := make([]byte, 5)
		if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != "+OK\r\n" {
			t.Fatalf("AUTH answers %q, %v", answer, err)
		}
		_ = conn.Close()
		if code := f.verify(t, f.mint(t, someone)); code != "" {
			t.Fatalf("after %s a fresh key is refused: %s", name, code)
		}
	}
}

func TestAKeyIsValidForAVerifierWhoseClockIsBehind(t *testing.T) {
	f := onRedis(t, embedded(t).URL())
	strict, err := minter.NewVerifier(minter.VerifierConfig{
		Redis: f.redis, TrustPublished: true, Leeway: -1,
		Now: func() time.Time { return time.Now().Add(-minter.DefaultLeeway + time.Second) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := strict.Verify(t.Context(), f.mint(t, someone).Token.Reveal(), someone.BusinessID, someone.AccountID); err != nil {
		t.Error(err)
	}
}

func TestClockSkewOfRedisIsMeasured(t *testing.T) {
	skew, err := minter.ClockSkew(t.Context(), open(t, redistest.Start(t).URL()))
	if err != nil || skew.Abs() > time.Second {
		t.Errorf("%s, %v on one machine", skew, err)
	}
}

// TestProbeFailsWhenMintingFails uses a Redis that answers PING in each case.
func TestProbeFailsWhenMintingFails(t *testing.T) {
	server := redistest.Start(t)
	boss := open(t, server.URL())
	if err := minter.Probe(t.Context(), boss); err != nil {
		t.Fatal(err)
	}
	if n := boss.DBSize(t.Context()).Val(); n != 0 {
		t.Errorf("the probe leaves %d keys", n)
	}
	for name, row := range map[string]struct {
		spoil, mend []string
		url         string
		want        string
	}{
		"a demoted master": {[]string{"REPLICAOF", "127.0.0.1", "1"}, []string{"REPLICAOF", "NO", "ONE"}, server.URL(),
			"is a replica and cannot be written"},
		"out of memory": {[]string{"CONFIG", "SET", "maxmemory", "1"}, []string{"CONFIG", "SET", "maxmemory", "0"},
			server.URL(), "is out of memory"},
		"an ACL without SET": {[]string{"ACL", "SETUSER", "reader", "on", ">p", "~*", "+@all", "-set"}, []string{"PING"},
			"redis://reader:p@" + server.Addr, "does not let this user do it"},
	} {
		client := open(t, row.url)
		server.Do(t, row.spoil...)
		if err := client.Ping(t.Context()).Err(); err != nil {
			t.Errorf("%s: PING: %v", name, err)
		}
		if err := minter.Probe(t.Context(), client); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want it to say %q", name, err, row.want)
		}
		server.Do(t, row.mend...)
	}
}
