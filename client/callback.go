package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// Callback is a message to a callback URL.
type Callback struct {
	// ID is the same for every retry of one message.
	ID string
	// Late is true for a result that a worker reported after another worker had ended its execution. The outcome
	// that was reported first stays valid.
	Late      bool
	Timestamp time.Time
	Finished
}

// VerifyCallback checks the signature of a callback (Standard Webhooks 1.0.0) and decodes it. body is the whole body,
// byte for byte. One of secrets must have signed it: pass the values of --webhook-secret-file, two during a rotation.
// A message is valid for five minutes; its receiver must expect the same ID more than once.
func VerifyCallback(header http.Header, body []byte, secrets ...string) (Callback, error) {
	refused := errors.New("no secret is given")
	for _, secret := range secrets {
		verifier, err := standardwebhooks.NewWebhook(secret)
		if err != nil {
			return Callback{}, errors.New("a webhook secret is not valid; write it as whsec_ followed by base64")
		}
		if refused = verifier.Verify(body, header); refused == nil {
			break
		}
	}
	if refused != nil {
		return Callback{}, fmt.Errorf("the callback is not authentic: %w", refused)
	}
	var message struct {
		Type      string    `json:"type"`
		Timestamp time.Time `json:"timestamp"`
		Data      Finished  `json:"data"`
	}
	if err := json.Unmarshal(body, &message); err != nil {
		return Callback{}, fmt.Errorf("read the callback: %w", err)
	}
	switch message.Type {
	case "execution.finished", "execution.late_result":
	default:
		return Callback{}, fmt.Errorf("the callback has the unknown type %q", message.Type)
	}
	return Callback{
		ID: header.Get("webhook-id"), Late: message.Type == "execution.late_result", Timestamp: message.Timestamp,
		Finished: message.Data,
	}, nil
}
