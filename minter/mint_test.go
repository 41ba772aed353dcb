package minter_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/ids"
	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/minter"
)

var someone = minter.Identity{AccountID: "account-1", AccountType: "service_automation", BusinessID: "business-1",
	ExecutionID: "execution-1"}

// fixture is a minter and a verifier on one Redis.
type fixture struct {
	redis    redis.UniversalClient
	minter   *minter.Minter
	verifier *minter.Verifier
}

// onRedis builds a fixture on the Redis at url.
func onRedis(t testing.TB, url string) fixture {
	t.Helper()
	return on(t, open(t, url))
}

func on(t testing.TB, client redis.UniversalClient) fixture {
	t.Helper()
	keys, err := minter.GenerateKeySet()
	if err != nil {
		t.Fatal(err)
	}
	m, err := minter.New(minter.Config{Redis: client, Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	v, err := minter.NewVerifier(minter.VerifierConfig{Redis: client, TrustPublished: true})
	if err != nil {
		t.Fatal(err)
	}
	return fixture{client, m, v}
}

func open(t testing.TB, url string) redis.UniversalClient {
	t.Helper()
	client, err := redisconn.Open(redisconn.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func embedded(t testing.TB) *redisconn.Embedded {
	t.Helper()
	e, err := redisconn.StartEmbedded()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	if err := e.Share("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	return e
}

func (f fixture) mint(t testing.TB, id minter.Identity) minter.Key {
	t.Helper()
	key, err := f.minter.Mint(t.Context(), id, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// verify returns the code with which the key is refused, or "" if it is accepted.
func (f fixture) verify(t testing.TB, key minter.Key) string {
	t.Helper()
	id, err := f.verifier.Verify(t.Context(), key.Token.Reveal(), key.Identity.BusinessID, key.Identity.AccountID)
	var denied *minter.DeniedError
	switch {
	case errors.As(err, &denied):
		return denied.Code
	case err != nil:
		t.Fatal(err)
	case id != key.Identity:
		t.Fatalf("verified as %v, want %v", id, key.Identity)
	}
	return ""
}

// everyStore runs a test on the embedded Redis and on a real one.
func everyStore(t *testing.T, test func(t *testing.T, f fixture)) {
	t.Run("embedded", func(t *testing.T) {
		client, err := redisconn.Open(redisconn.Config{Embedded: embedded(t)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.Close() })
		test(t, on(t, client))
	})
	t.Run("embedded, shared", func(t *testing.T) { test(t, onRedis(t, embedded(t).URL())) })
	t.Run("redis-server", func(t *testing.T) { test(t, onRedis(t, redistest.Start(t).URL())) })
}

func TestMintedKeyIsValidUntilItIsRevoked(t *testing.T) {
	everyStore(t, func(t *testing.T, f fixture) {
		key := f.mint(t, someone)
		if code := f.verify(t, key); code != "" {
			t.Fatalf("a fresh key is refused: %s", code)
		}
		if err := f.minter.Revoke(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		if code := f.verify(t, key); code != minter.CodeRevoked {
			t.Fatalf("a revoked key: %q", code)
		}
		if err := f.minter.Revoke(t.Context(), key); err != nil {
			t.Errorf("revoking twice: %v", err)
		}
	})
}

func TestEverythingAKeyLeavesInRedisExpiresWithIt(t *testing.T) {
	everyStore(t, func(t *testing.T, f fixture) {
		key := f.mint(t, someone)
		names, err := f.redis.Keys(t.Context(), "*").Result()
		if err != nil || len(names) != 2 {
			t.Fatalf("redis holds %v, %v; want a record and a public key", names, err)
		}
		for _, name := range names {
			left, err := f.redis.PTTL(t.Context(), name).Result()
			if err != nil || left <= 0 || left > time.Until(key.ExpiresAt)+time.Second {
				t.Errorf("%s lives for %s, %v; the key for %s", name, left, err, time.Until(key.ExpiresAt))
			}
			if !strings.Contains(name, "{business-1}") {
				t.Errorf("%s has no hash tag of the business", name)
			}
		}
	})
}

// lateShortMint delays the first pipeline until a longer-lived key was minted.
type lateShortMint struct {
	held   atomic.Bool
	longer func()
}

func (l *lateShortMint) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (l *lateShortMint) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (l *lateShortMint) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, commands []redis.Cmder) error {
		if l.held.CompareAndSwap(false, true) {
			l.longer()
		}
		return next(ctx, commands)
	}
}

func TestPublicKeyOutlivesTheLongestKeyInAnyOrderOfMints(t *testing.T) {
	f := onRedis(t, embedded(t).URL())
	var long minter.Key
	f.redis.AddHook(&lateShortMint{longer: func() {
		var err error
		if long, err = f.minter.Mint(t.Context(), someone, time.Hour); err != nil {
			t.Error(err)
		}
	}})
	f.mint(t, someone)
	name := f.redis.Keys(t.Context(), "*:jwk:*").Val()[0]
	if left := f.redis.PTTL(t.Context(), name).Val(); left < time.Until(long.ExpiresAt) {
		t.Errorf("the public key is published for %s, a key that it signed lives for %s", left, time.Until(long.ExpiresAt))
	}
}

func TestKeysExpireByTheWallClock(t *testing.T) {
	key := onRedis(t, embedded(t).URL()).mint(t, someone)
	for name, at := range map[string]time.Time{"IssuedAt": key.IssuedAt, "ExpiresAt": key.ExpiresAt} {
		// the monotonic clock stops while the machine sleeps, but Redis continues
		if strings.Contains(at.String(), "m=") {
			t.Errorf("%s follows the monotonic clock: %s", name, at)
		}
	}
}

func TestRedisNeverHoldsTheToken(t *testing.T) {
	everyStore(t, func(t *testing.T, f fixture) {
		key := f.mint(t, someone)
		names, err := f.redis.Keys(t.Context(), "*").Result()
		if err != nil || len(names) == 0 {
			t.Fatal(names, err)
		}
		for _, name := range names {
			value, err := f.redis.Get(t.Context(), name).Result()
			if err != nil {
				t.Fatal(err)
			}
			for _, part := range strings.Split(key.Token.Reveal(), ".") {
				if strings.Contains(name+value, part) {
					t.Errorf("%s = %s holds a part of the token", name, value)
				}
			}
		}
	})
}

func TestEmbeddedRedisLetsLifetimesElapse(t *testing.T) {
	f := onRedis(t, embedded(t).URL())
	key, err := f.minter.Mint(t.Context(), someone, 50*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	for f.verify(t, key) == "" { // ends when the key expires
		time.Sleep(time.Millisecond)
	}
	for f.redis.DBSize(t.Context()).Val() != 0 {
		time.Sleep(time.Millisecond)
	}
}

func TestEmbeddedRedisRequiresItsPassword(t *testing.T) {
	_, address, _ := strings.Cut(embedded(t).URL(), "@")
	err := open(t, "redis://"+address).Ping(t.Context()).Err()
	if err == nil || !strings.Contains(err.Error(), "wants a password") {
		t.Errorf("a client without the password: %v", err)
	}
}

func TestMintCostsOneRoundTrip(t *testing.T) {
	server := redistest.Start(t)
	relay := startRelay(t, server.Addr)
	f := onRedis(t, "redis://"+relay.addr)
	for i, want := range []int{2, 1, 1} { // the first opens the connection with HELLO
		before := relay.trips()
		f.mint(t, someone)
		if trips := relay.trips() - before; trips != want {
			t.Errorf("mint %d took %d round trips, want %d", i, trips, want)
		}
	}
}

func TestMintRefusesInvalidRequests(t *testing.T) {
	f := onRedis(t, embedded(t).URL())
	with := func(change func(*minter.Identity)) minter.Identity { id := someone; change(&id); return id }
	for name, row := range map[string]struct {
		id       minter.Identity
		lifetime time.Duration
		want     string
	}{
		"no account": {with(func(id *minter.Identity) { id.AccountID = "" }), time.Minute,
			`account id "" ` + ids.Rule},
		"no type": {with(func(id *minter.Identity) { id.AccountType = "" }), time.Minute,
			`account type "" ` + ids.Rule},
		"no execution": {with(func(id *minter.Identity) { id.ExecutionID = "" }), time.Minute,
			`execution id "" ` + ids.Rule},
		"another hash slot": {with(func(id *minter.Identity) { id.BusinessID = "a}:key:{b" }), time.Minute, "business id"},
		"a pattern":         {with(func(id *minter.Identity) { id.ExecutionID = "a*" }), time.Minute, "execution id"},
		"a header of its own": {with(func(id *minter.Identity) { id.AccountID = "a\r\nX-Admin: 1" }), time.Minute,
			"account id"},
		"too long": {with(func(id *minter.Identity) { id.AccountID = strings.Repeat("a", 129) }), time.Minute,
			"at most 128"},
		"no lifetime":         {someone, 0, "outside 1ms to 1h0m0s"},
		"too long a lifetime": {someone, time.Hour + 1, "outside 1ms to 1h0m0s"},
	} {
		t.Run(name, func(t *testing.T) {
			key, err := f.minter.Mint(t.Context(), row.id, row.lifetime)
			if err == nil || !strings.Contains(err.Error(), row.want) || key.Token.Reveal() != "" {
				t.Errorf("Mint = %v, %v; want an error about %q", key, err, row.want)
			}
		})
	}
	if n, err := f.redis.DBSize(t.Context()).Result(); err != nil || n != 0 {
		t.Errorf("refused mints left %d keys, %v", n, err)
	}
}

func TestMintAndVerifyFailClosedWithoutRedis(t *testing.T) {
	server := redistest.Start(t)
	f := onRedis(t, server.URL())
	key := f.mint(t, someone)
	server.Stop()

	want := "redis at " + server.Addr + " refused the connection; start one there, or correct the redis url"
	var failed *redisconn.Error
	unminted, err := f.minter.Mint(t.Context(), someone, time.Minute)
	if !errors.As(err, &failed) || failed.Error() != want || unminted.Token.Reveal() != "" {
		t.Errorf("Mint = %v, %v; want %q", unminted, err, want)
	}
	id, err := f.verifier.Verify(t.Context(), key.Token.Reveal(), someone.BusinessID, someone.AccountID)
	if !errors.As(err, &failed) || failed.Error() != want || id != (minter.Identity{}) {
		t.Errorf("Verify = %v, %v; want %q", id, err, want)
	}
	if err := f.minter.Revoke(t.Context(), key); !errors.As(err, &failed) {
		t.Errorf("Revoke = %v, want an error of redisconn", err)
	}
}

func TestAmbiguousMintLeavesNothingAfterItsLifetime(t *testing.T) {
	server := redistest.Start(t)
	direct := open(t, server.URL())
	relay := startRelay(t, server.Addr)
	client, err := redisconn.Open(redisconn.Config{URL: "redis://" + relay.addr, Timeout: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	f := on(t, client)
	f.mint(t, someone)
	if err := direct.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}

	relay.swallowReplies()
	const lifetime = 30 * time.Second
	key, err := f.minter.Mint(t.Context(), someone, lifetime)
	if err == nil || key.Token.Reveal() != "" {
		t.Fatalf("Mint without an answer = %v, %v; want an error and no token", key, err)
	}
	names, err := direct.Keys(t.Context(), "*:key:*").Result()
	if err != nil || len(names) != 1 {
		t.Fatalf("redis holds %v, %v; want the record whose answer was lost", names, err)
	}
	if left := direct.PTTL(t.Context(), names[0]).Val(); left <= 0 || left > lifetime {
		t.Errorf("the record lives for %s, want at most %s", left, lifetime)
	}
}

// relay forwards between a client and a Redis, counts its round trips and can drop the responses.
type relay struct {
	addr    string
	mu      sync.Mutex
	count   int
	swallow bool
}

func startRelay(t *testing.T, target string) *relay {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{addr: listener.Addr().String()}
	var running sync.WaitGroup
	t.Cleanup(running.Wait)
	t.Cleanup(func() { _ = listener.Close() })
	running.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				_ = client.Close()
				continue
			}
			running.Go(func() { r.copy(client, server, true) })
			running.Go(func() { r.copy(server, client, false) })
		}
	})
	return r
}

// copy counts one trip for every write of the client: go-redis flushes a command or a pipeline at once.
func (r *relay) copy(from, to net.Conn, request bool) {
	defer func() { _ = to.Close() }()
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		r.mu.Lock()
		swallow := r.swallow && !request
		if request {
			r.count++
		}
		r.mu.Unlock()
		if swallow {
			continue
		}
		if _, err := to.Write(buffer[:n]); err != nil && !errors.Is(err, io.EOF) {
			return
		}
	}
}

func (r *relay) trips() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count
}

func (r *relay) swallowReplies() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.swallow = true
}
