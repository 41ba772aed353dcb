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
	// DefaultLeeway is how far the clocks of a sidecar and a platform may differ.
	DefaultLeeway = 5 * time.Second
	// maxTokenLength is the maximal length of a token, in bytes. A signed key has about 600.
	maxTokenLength = 4096
)

// The codes of a [DeniedError].
const (
	CodeMissing     = "missing"     // no key was sent
	CodeMalformed   = "malformed"   // not a signed key
	CodeAlgorithm   = "algorithm"   // not signed with EdDSA
	CodeUnknownKey  = "unknown_key" // signed by a key that is not in the key set
	CodeSignature   = "signature"   // the signature is invalid
	CodeExpired     = "expired"
	CodeNotYetValid = "not_yet_valid"
	CodeIssuer      = "issuer"
	CodeAudience    = "audience"
	CodeBusiness    = "business"  // the business header is not the key's business
	CodeUser        = "user"      // the user header is not the key's account
	CodeRevoked     = "revoked"   // the key has no record, or the record belongs to another identity
	CodeSuspended   = "suspended" // the account is suspended
)

// DeniedError says why a key was refused. Code and Reason may be shown to its sender.
type DeniedError struct {
	Code   string // one of the Code constants
	Reason string // a human-readable sentence
	Err    error  // the error of the check; may be nil
	// Lost reports that the key was once valid and that Redis has no revocation of it. If Redis lost its data, a new
	// key works.
	Lost bool
}

// Error implements error.
func (e *DeniedError) Error() string { return "key refused: " + e.Reason }

// Unwrap returns the error of the check that refused the key.
func (e *DeniedError) Unwrap() error { return e.Err }

func denied(code, reason string, err error) error {
	return &DeniedError{Code: code, Reason: reason, Err: err}
}

// VerifierConfig configures a [Verifier]. Redis is required, and Keys or TrustPublished.
type VerifierConfig struct {
	Redis    redis.UniversalClient // the caller closes it
	Keys     *KeySet
	Issuer   string           // default [DefaultIssuer]
	Audience string           // default [DefaultAudience]
	Leeway   time.Duration    // for exp and nbf; default [DefaultLeeway]; negative: none
	Now      func() time.Time // default time.Now
	Admit    Admission        // if nil, every account that is not suspended may act
	// StoredUsed, if not nil, is called for each accepted use of a stored key, with the key's ID.
	StoredUsed func(ctx context.Context, id Identity, keyID string)

	// TrustPublished accepts keys whose signer's public key a minter published in Redis. Anyone who can write to
	// Redis can then mint, so use it only for development, or if Redis is as trusted as a signing key.
	TrustPublished bool
}

// Verifier decides whether the key of a request is valid. It is safe for concurrent use.
type Verifier struct {
	config VerifierConfig
	store  store
	parser *jwt.Parser
}

// NewVerifier validates config and returns a Verifier. It does not contact Redis.
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

// Verify verifies a request with token, a signed or a stored key, and with businessID and userID in its two ID headers.
// It returns the identity that the key acts for, or a [*DeniedError]. Any other error comes from the Redis client and
// leaves the decision open; the request must not pass then either.
func (v *Verifier) Verify(ctx context.Context, token, businessID, userID string) (Identity, error) {
	found, err := v.check(ctx, token, businessID, userID)
	if err == nil && len(found.suspended) == 0 {
		err = found.invalid // otherwise the suspension is the reason
	}
	if err == nil {
		err = v.config.Admit.decide(ctx, found.id, found.suspended)
	}
	if err == nil {
		err = found.invalid
	}
	if err != nil {
		return Identity{}, err
	}
	if found.storedID != "" && v.config.StoredUsed != nil {
		v.config.StoredUsed(ctx, found.id, found.storedID)
	}
	return found.id, nil
}

// checked is the result for a key with a valid signature, or for a stored key that exists.
type checked struct {
	id        Identity
	suspended []Reason
	storedID  string // of a stored key
	invalid   error  // why a signed key is no longer valid: it has no record, or it was revoked
}

func (v *Verifier) check(ctx context.Context, token, businessID, userID string) (checked, error) {
	switch {
	case token == "":
		return checked{}, denied(CodeMissing, "no key was sent", nil)
	case len(token) > maxTokenLength:
		return checked{}, denied(CodeMalformed, "the key is too long", nil)
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
		all.invalid = &DeniedError{Code: CodeRevoked, Reason: err.Error(), Err: err, Lost: errors.Is(err, errLost)}
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
	errNotBase64  = errors.New("the token contains characters other than base64url and dots")
	errUnknownKey = errors.New("the key was signed by an unknown key")
)

// parse checks everything that needs no record. If only Redis knows the signer, parse reads the key's state in the same
// round trip.
func (v *Verifier) parse(ctx context.Context, token string) (c claims, found *keyState, err error) {
	// encoding/base64 skips line ends, which would give one key many spellings.
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

// storeError is a failure of Redis while parsing a token.
type storeError struct{ error }

// explainParse turns the jwt library's errors into a [*DeniedError].
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
		{jwt.ErrTokenSignatureInvalid, CodeSignature, "the signature is invalid"},
	} {
		if errors.Is(err, row.cause) {
			return denied(row.code, row.reason, err)
		}
	}
	return denied(CodeMalformed, "the key lacks required claims", err)
}
