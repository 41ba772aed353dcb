package proxy

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"slices"
)

// Renewer is a [KeySource] that can replace a key before its time.
type Renewer interface {
	// Renew returns another key than stale, which the API did not know. It must answer within [Config.KeyTimeout], and give up
	// where a key that it gave lately was not known either: it is asked for every such answer.
	Renew(ctx context.Context, stale string) (string, error)
}

// unknownKey stands in the challenge (RFC 9110 section 11.6.1) of a 401 where the API does not know who signed the key, lostRecord
// where it knows nothing of the key itself, nor of its revocation. No request with such a key is acted on.
var unknownKey, lostRecord = []byte(`error="unknown_key"`), []byte(`record="lost"`)

// errKeyRenewed ends an exchange whose request may be sent again, with another key.
var errKeyRenewed = errors.New("the api did not know the key")

// renewKey asks for another key where the answer, whose head is in c.resp, says that the API does not know this one; once for each
// request. It reports whether the request may be sent again in place of delivering the answer.
func (x *exchange) renewKey() bool {
	c := x.c
	renewer, ok := c.p.cfg.Keys.(Renewer)
	if !ok || x.renewed || c.resp.Status != http.StatusUnauthorized {
		return false
	}
	if challenge := headerValue(c.resp.Fields, "www-authenticate"); !bytes.Contains(challenge, unknownKey) && !bytes.Contains(challenge, lostRecord) {
		return false
	}
	x.renewed = true
	ctx := newLazyDeadline(c.p.ctx, c.p.cfg.KeyTimeout)
	defer ctx.release()
	if _, err := renewer.Renew(ctx, x.key); err != nil {
		return false // the answer says the rest
	}
	return !x.interim && (x.whole || x.consumed() && !x.body.lost)
}

// rewrite puts the new key into the request in c.out, whose head is head bytes long. It returns the length of the new one.
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
