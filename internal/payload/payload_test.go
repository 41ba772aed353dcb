package payload

import (
	"bytes"
	"compress/gzip"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

func newStore(t *testing.T) (Store, *miniredis.Miniredis) {
	t.Helper()
	server := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { _ = client.Close() })
	return Store{client}, server
}

func TestAStoredRequestIsReadUnchanged(t *testing.T) {
	store, server := newStore(t)
	for name, request := range map[string]string{
		"short": `{"a": 1}`, "long": `{"script": "` + strings.Repeat("print(1)\n", 10000) + `"}`, "empty": "",
	} {
		reference := Reference{ExecutionID: name, BusinessID: "b"}
		if err := store.Put(t.Context(), &reference, []byte(request)); err != nil {
			t.Fatal(err)
		}
		if got, err := store.Get(t.Context(), reference); err != nil || string(got) != request {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		if stored, _ := server.Get(reference.Key()); len(request) > 1<<10 && len(stored) > len(request)/10 {
			t.Errorf("%s: %d bytes take %d", name, len(request), len(stored))
		}
		if server.TTL(reference.Key()) != Retention {
			t.Errorf("%s stays for %v", name, server.TTL(reference.Key()))
		}
		if err := store.Delete(t.Context(), reference); err != nil || server.Exists(reference.Key()) {
			t.Errorf("%s is still there: %v", name, err)
		}
		if _, err := store.Get(t.Context(), reference); !errors.Is(err, ErrGone) {
			t.Errorf("%s after it was deleted: %v", name, err)
		}
	}
}

// TestAnotherRequestUnderTheKeyIsNotRun: a program with access to Redis replaces a stored request.
func TestAnotherRequestUnderTheKeyIsNotRun(t *testing.T) {
	store, server := newStore(t)
	reference := Reference{ExecutionID: "e", BusinessID: "b"}
	if err := store.Put(t.Context(), &reference, []byte(`{"user_script": "pass"}`)); err != nil {
		t.Fatal(err)
	}
	for name, stored := range map[string][]byte{
		"another": []byte(`{"user_script": "evil()"}`), "half a stream": Compress(bytes.Repeat([]byte("a"), 4<<10))[:30],
		"none":   {0x1f, 0x8b},
		"a bomb": bomb(),
	} {
		if err := server.Set(reference.Key(), string(stored)); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Get(t.Context(), reference); !errors.Is(err, ErrGone) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// bomb is a gzip stream of one byte more than MaxSize.
var bomb = sync.OnceValue(func() []byte {
	var b bytes.Buffer
	w, _ := gzip.NewWriterLevel(&b, gzip.BestSpeed) // the level is valid
	_, _ = w.Write(make([]byte, MaxSize+1))         // a buffer accepts everything
	_ = w.Close()
	return b.Bytes()
})

func TestADocumentIsCompressedOnlyIfItGetsSmaller(t *testing.T) {
	random := make([]byte, 4<<10)
	for i, state := 0, uint32(1); i < len(random); i++ {
		state = state*1664525 + 1013904223
		random[i] = byte(state >> 24)
	}
	for name, c := range map[string]struct {
		document   []byte
		compressed bool
	}{
		"short": {[]byte(`{"values": {}}`), false}, "long": {bytes.Repeat([]byte("abc"), 1000), true},
		"random": {random, false},
	} {
		stored := Compress(c.document)
		if Compressed(stored) != c.compressed {
			t.Errorf("%s: compressed is %v", name, !c.compressed)
		}
		if got, err := Expand(stored); err != nil || !bytes.Equal(got, c.document) {
			t.Errorf("%s is not restored: %v", name, err)
		}
	}
	if _, err := Expand(bomb()); err == nil {
		t.Error("a document beyond MaxSize is expanded")
	}
}

func TestARequestThatIsTooLargeIsNotStored(t *testing.T) {
	store, server := newStore(t)
	if err := store.Put(t.Context(), &Reference{ExecutionID: "e", BusinessID: "b"}, make([]byte, MaxSize+1)); err == nil ||
		len(server.Keys()) != 0 {
		t.Errorf("%v, %v", err, server.Keys())
	}
}
