package proxy

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"slices"
)

// Renewer is a [KeySource] that can replace a key before it expires.
type Renewer interface {
	// Renew replaces the key stale, which the API did not know. It must return within Config.keyTimeout. It is
	// called for every such response, so it must fail if the API did not know a recently returned key either.
	Renew(ctx context.Context, stale string) (string, error)
}

// unknownKey is in the challenge (RFC 9110 section 11.6.1) of a 401 if the API does not know the key's signer,
// lostRecord if it has neither a record of the key nor of its revocation. The API processes no request with such a key.
var unknownKey, lostRecord = []byte(`error="unknown_key"`), []byte(`record="lost"`)

// errKeyRenewed ends an exchange whose request may be sent again with a new key.
var errKeyRenewed = errors.New("the api did not know the key")

// renewKey requests a new key if the response, whose head is in c.resp, says that the API does not know the current
// one; at most once for each request. It reports whether the request may be sent again instead of delivering the
// response.
func (x *exchange) renewKey() bool {
	c := x.c
	renewer, ok := c.p.cfg.Keys.(Renewer)
	if !ok || x.renewed || c.resp.Status != http.StatusUnauthorized {
		return false
	}
	if challenge := headerValue(c.resp.Fields, "www-authenticate"); !bytes.Contains(challenge, unknownKey) &&
		!bytes.Contains(challenge, lostRecord) {
		return false
	}
	x.renewed = true
	ctx := newLazyDeadline(c.p.ctx, c.p.cfg.keyTimeout)
	defer ctx.release()
	if _, err := renewer.Renew(ctx, x.key); err != nil {
		return false // the API's response is delivered
	}
	return !x.interim && (x.whole || x.consumed() && !x.body.lost)
}

// rewrite puts the new key into the request in c.out, whose head has head bytes. It returns the length of the new head.
func (x *exchange) rewrite(head int) (int, *refusal) {
	if r := x.fetchKey(); r != nil {
		return 0, r
	}
	c := x.c
	body := slices.Clone(c.out[head:])
	c.out = x.appendRequest(c.out[:0])
	head = len(c.out)
	c.out = append(c.out, body...)
	x.call.Retried = true
	return head, nil
}
