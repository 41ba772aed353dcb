// Package payload stores large payloads of a fleet's tasks outside of the tasks, compressed. asynq rewrites the
// payload of every active task every few seconds; a task with a [Reference] costs a few hundred bytes instead.
package payload

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/redis/go-redis/v9"
)

// Inline is the size in bytes up to which a task carries its payload itself.
const Inline = 16 << 10

// MaxSize is the maximum size in bytes of a payload or a result, when it is not compressed.
const MaxSize = 64 << 20

// Retention is how long the payload of an unfinished execution is kept: as long as asynq keeps a dead letter.
const Retention = 90 * 24 * time.Hour

// ErrGone reports that Redis no longer has a payload.
var ErrGone = errors.New("the payload of the execution is no longer in Redis")

// Reference is the payload of a task whose request is stored. A worker reads only these fields before it prepares the
// execution.
type Reference struct {
	ExecutionID string `json:"execution_id"`
	BusinessID  string `json:"business_id"`
	CallbackURL string `json:"callback_url,omitempty"`
	Traceparent string `json:"traceparent,omitempty"`
	// SHA256 is the hexadecimal hash of the request. It is part of the key, so two requests never share one.
	SHA256 string `json:"payload_sha256"`
}

// Key returns the key under which the request is stored.
func (r Reference) Key() string {
	return "kizen:{" + r.BusinessID + "}:payload:" + r.ExecutionID + ":" + r.SHA256
}

// Store keeps payloads in Redis. It is safe for concurrent use.
type Store struct{ Redis redis.UniversalClient }

// Put stores a request and sets the hash of its reference.
func (s Store) Put(ctx context.Context, r *Reference, request []byte) error {
	if len(request) > MaxSize {
		return fmt.Errorf("the request has %d bytes; at most %d fit into the queue", len(request), MaxSize)
	}
	r.SHA256 = hash(request)
	return s.Redis.Set(ctx, r.Key(), Compress(request), Retention).Err()
}

// Get returns the request of a reference. The error is [ErrGone] if Redis has no request with this hash.
func (s Store) Get(ctx context.Context, r Reference) ([]byte, error) {
	stored, err := s.Redis.Get(ctx, r.Key()).Bytes()
	switch {
	case errors.Is(err, redis.Nil):
		return nil, ErrGone
	case err != nil:
		return nil, fmt.Errorf("read the payload of execution %s: %w", r.ExecutionID, err)
	}
	request, err := Expand(stored)
	if err != nil || hash(request) != r.SHA256 {
		return nil, fmt.Errorf("%w: its key contains other data", ErrGone)
	}
	return request, nil
}

// Delete removes the request of a reference, if Redis has it.
func (s Store) Delete(ctx context.Context, r Reference) error {
	return s.Redis.Unlink(ctx, r.Key()).Err()
}

func hash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// compressFrom is the size in bytes from which compression saves more than it costs.
const compressFrom = 1 << 10

// magic begins every gzip stream (RFC 1952, section 2.3.1). No JSON document begins with it.
var magic = []byte{0x1f, 0x8b}

// Compressed reports whether stored bytes are a gzip stream.
func Compressed(stored []byte) bool { return bytes.HasPrefix(stored, magic) }

// Compress returns a JSON document as gzip (RFC 1952) if it is larger than 1 KiB and gets smaller, otherwise
// unchanged.
func Compress(document []byte) []byte {
	if len(document) < compressFrom {
		return document
	}
	var b bytes.Buffer
	w, _ := gzip.NewWriterLevel(&b, gzip.BestSpeed) // the level is valid
	_, _ = w.Write(document)                        // a buffer accepts everything
	_ = w.Close()
	if b.Len() >= len(document) {
		return document
	}
	return b.Bytes()
}

// Expand undoes [Compress]. It fails for a broken stream, and for a document of more than [MaxSize] bytes.
func Expand(stored []byte) ([]byte, error) {
	if !Compressed(stored) {
		return stored, nil
	}
	r, err := gzip.NewReader(bytes.NewReader(stored))
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	document, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	if len(document) > MaxSize {
		return nil, fmt.Errorf("decompress: more than %d bytes", MaxSize)
	}
	return document, nil
}
