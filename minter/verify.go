package minter

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/redis/go-redis/v9"
)

const (
	// DefaultLeeway is by how much the clocks of a sidecar and a platform may differ.
	DefaultLeeway = 5 * time.Second
	// maxTokenLength bounds what is parsed at all, in bytes. A signed key has about 600.
	maxTokenLength = 4096
)

// The codes of a [DeniedError].
const (
	CodeMissing     = "missing"     // no key was sent
	CodeMalformed   = "malformed"   // not a signed key
	CodeAlgorithm   = "algorithm"   // signed with something else than EdDSA
	CodeUnknownKey  = "unknown_key" // signed by a key that is not in the key set
	CodeSignature   = "signature"   // the signature does not hold
	CodeExpired     = "expired"
	CodeNotYetValid = "not_yet_valid"
	CodeIssuer      = "issuer"
	CodeAudience    = "audience"
	CodeBusiness    = "business"  // the business header is not the key's business
	CodeUser        = "user"      // the user header is not the key's account
	CodeRevoked     = "revoked"   // there is no record of the key, or not this one
	CodeSuspended   = "suspended" // the account is suspended
)

// DeniedError says why a key was refused. Code and Reason may be shown to its sender.
type DeniedError struct {
	Code   string // one of the Code constants
	Reason string // a sentence for people
	Err    error  // what the check returned; may be nil
	// Lost: the key was good once, and nothing says that it was revoked. Where Redis lost its content, another key is good again.
	Lost bool
}

// Error implements error.
func (e *DeniedError) Error() string { return "key refused: " + e.Reason }

// Unwrap returns what the check that refused the key returned.
func (e *DeniedError) Unwrap() error { return e.Err }

func denied(code, reason string, err error) error {
	return &DeniedError{Code: code, Reason: reason, Err: err}
}

// VerifierConfig says what a [Verifier] accepts. Redis is required, and Keys or TrustPublished.
type VerifierConfig struct {
	Redis    redis.UniversalClient // the caller closes it
	Keys     *KeySet
	Issuer   string           // default [DefaultIssuer]
	Audience string           // default [DefaultAudience]
	Leeway   time.Duration    // for exp and nbf; default [DefaultLeeway]; negative: none
	Now      func() time.Time // default time.Now
	Admit    Admission        // nil: every account that is not suspended may act
	// StoredUsed is told of each use of a stored key that was let in, by the key's id; nil: uses are not recorded.
	StoredUsed func(ctx context.Context, id Identity, keyID string)

	// TrustPublished accepts keys signed by a pair whose public half a minter published in Redis. Whoever can write to Redis
	// can then mint: for development, and where Redis is as trusted as a signing key.
	TrustPublished bool
}

// Verifier decides whether a key that came with a request is good. It is safe for concurrent use.
type Verifier struct {
	config VerifierConfig
	store  store
	parser *jwt.Parser
}

// NewVerifier checks config and returns a Verifier. It does not talk to Redis.
func NewVerifier(config VerifierConfig) (*Verifier, error) {
	if config.Redis == nil {
		return nil, errors.New("a verifier needs a redis client")
	}
	if config.Keys == nil && !config.TrustPublished {
		return nil, errors.New("a verifier needs a key set, or to trust published keys")
	}
	if config.Issuer == "" {
		config.Issuer = DefaultIssuer
	}
	if config.Audience == "" {
		config.Audience = DefaultAudience
	}
	if config.Leeway == 0 {
		config.Leeway = DefaultLeeway
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	return &Verifier{config: config, store: store{config.Redis}, parser: jwt.NewParser(
		jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}),
		jwt.WithStrictDecoding(),
		jwt.WithExpirationRequired(),
		jwt.WithNotBeforeRequired(),
		jwt.WithIssuer(config.Issuer),
		jwt.WithAudience(config.Audience),
		jwt.WithLeeway(max(config.Leeway, 0)),
		jwt.WithTimeFunc(config.Now),
	)}, nil
}

// Verify decides about a request that carries token, a signed or a stored key, and in its two id headers businessID and userID.
// It returns for whom the key acts, or a [*DeniedError]; any other error is one of the Redis client. It decides nothing, and the
// request must not pass either.
func (v *Verifier) Verify(ctx context.Context, token, businessID, userID string) (Identity, error) {
	found, err := v.check(ctx, token, businessID, userID)
	if err == nil && len(found.suspended) == 0 {
		err = found.dead // otherwise the suspension is why it is dead
	}
	if err == nil {
		err = v.config.Admit.decide(ctx, found.id, found.suspended)
	}
	if err == nil {
		err = found.dead
	}
	if err != nil {
		return Identity{}, err
	}
	if found.storedID != "" && v.config.StoredUsed != nil {
		v.config.StoredUsed(ctx, found.id, found.storedID)
	}
	return found.id, nil
}

// checked is what a good signature, or a stored key that is there, says.
type checked struct {
	id        Identity
	suspended []Reason
	storedID  string // of a stored key
	dead      error  // why a signed key is not good any more: there is no record of it, or it was revoked
}

func (v *Verifier) check(ctx context.Context, token, businessID, userID string) (checked, error) {
	switch {
	case token == "":
		return checked{}, denied(CodeMissing, "no key was sent", nil)
	case len(token) > maxTokenLength:
		return checked{}, denied(CodeMalformed, "the key is too long to be one", nil)
	case strings.HasPrefix(token, storedPrefix):
		return v.checkStored(ctx, token, businessID, userID)
	}
	c, found, err := v.parse(ctx, token)
	if err != nil {
		return checked{}, explainParse(err)
	}
	id := c.identity()
	if err := checkHeaders(id, businessID, userID); err != nil {
		return checked{}, err
	}
	if found == nil {
		if found, err = v.store.get(ctx, id, c.ID, ""); err != nil {
			return checked{}, fmt.Errorf("verify key of execution %s: %w", id.ExecutionID, err)
		}
	}
	all := checked{id: id, suspended: found.scopes.suspended}
	if err := found.check(id); err != nil {
		all.dead = &DeniedError{Code: CodeRevoked, Reason: err.Error(), Err: err, Lost: errors.Is(err, errLost)}
	}
	return all, nil
}

func checkHeaders(id Identity, businessID, userID string) error {
	switch {
	case businessID != id.BusinessID:
		return denied(CodeBusiness, "the business header is not the key's business", nil)
	case userID != id.AccountID:
		return denied(CodeUser, "the user header is not the key's account", nil)
	}
	return nil
}

var (
	errNotBase64  = errors.New("the token holds something else than base64url and dots")
	errUnknownKey = errors.New("the key was signed by a key that is not known here")
)

// parse checks all that a token says by itself. Where its signer is known from Redis alone, what else Redis says of the key comes
// along in the same round trip.
func (v *Verifier) parse(ctx context.Context, token string) (c claims, found *held, err error) {
	// encoding/base64 skips line ends, which would let one key be written in many ways.
	if strings.Trim(token, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
		return claims{}, nil, errNotBase64
	}
	h, err := parseHeader(token)
	if err != nil {
		return claims{}, nil, err
	}
	_, err = v.parser.ParseWithClaims(token, &c, func(*jwt.Token) (any, error) {
		if key, ok := v.config.Keys.lookup(h.KeyID, v.config.Now()); ok {
			return key, nil
		}
		if !v.config.TrustPublished {
			return nil, errUnknownKey
		}
		if err := errors.Join(c.Validate(), validateKID(h.KeyID)); err != nil {
			return nil, err
		}
		var err error
		if found, err = v.store.get(ctx, c.identity(), c.ID, h.KeyID); err != nil {
			return nil, &storeError{err}
		}
		if found.published == "" {
			return nil, errUnknownKey
		}
		return parsePublished(h.KeyID, found.published)
	})
	return c, found, err
}

// storeError is a failure of Redis while a token is parsed.
type storeError struct{ error }

// explainParse turns the jwt library's errors into ours.
func explainParse(err error) error {
	var store *storeError
	if errors.As(err, &store) {
		return fmt.Errorf("verify key: %w", store.error)
	}
	for _, row := range []struct {
		cause        error
		code, reason string
	}{
		{errHeader, CodeMalformed, errHeader.Error()},
		{errAlgorithm, CodeAlgorithm, errAlgorithm.Error()},
		{errUnknownKey, CodeUnknownKey, errUnknownKey.Error()},
		{jwt.ErrTokenMalformed, CodeMalformed, "this is not a signed key"},
		{jwt.ErrTokenExpired, CodeExpired, "the key has expired"},
		{jwt.ErrTokenNotValidYet, CodeNotYetValid, "the key is not valid yet"},
		{jwt.ErrTokenInvalidIssuer, CodeIssuer, "the key is from another issuer"},
		{jwt.ErrTokenInvalidAudience, CodeAudience, "the key is for another audience"},
		{jwt.ErrTokenSignatureInvalid, CodeSignature, "the signature does not hold"},
	} {
		if errors.Is(err, row.cause) {
			return denied(row.code, row.reason, err)
		}
	}
	return denied(CodeMalformed, "the key lacks claims that it must have", err)
}
