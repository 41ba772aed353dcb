package minter_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/minter"
)

// A key is good until it is revoked or its lifetime ends, whichever comes first.
func Example() {
	ctx := context.Background()
	store, err := redisconn.StartEmbedded() // in production a Redis that sidecar and platform share
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	if err := store.Share("127.0.0.1:0"); err != nil {
		log.Fatal(err)
	}
	client, err := redisconn.Open(redisconn.Config{URL: store.URL()})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	keys, err := minter.GenerateKeySet()
	if err != nil {
		log.Fatal(err)
	}

	m, err := minter.New(minter.Config{Redis: client, Keys: keys})
	if err != nil {
		log.Fatal(err)
	}
	key, err := m.Mint(ctx, minter.Identity{
		BusinessID: "b-1", AccountID: "code-account-1", AccountType: "service_automation", ExecutionID: "e-1",
	}, time.Minute)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("token:", key.Token)

	verifier, err := minter.NewVerifier(minter.VerifierConfig{Redis: client, Keys: keys})
	if err != nil {
		log.Fatal(err)
	}
	id, err := verifier.Verify(ctx, key.Token.Reveal(), "b-1", "code-account-1")
	fmt.Println("execution:", id.ExecutionID, err)

	if err := m.Revoke(ctx, key); err != nil {
		log.Fatal(err)
	}
	_, err = verifier.Verify(ctx, key.Token.Reveal(), "b-1", "code-account-1")
	var denied *minter.DeniedError
	fmt.Println("denied after the revocation:", errors.As(err, &denied))
	// Output:
	// token: [REDACTED]
	// execution: e-1 <nil>
	// denied after the revocation: true
}
