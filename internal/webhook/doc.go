// Package webhook reports the end of an execution to a receiver, in a message that proves its sender.
//
// Messages are signed by the conventions of Standard Webhooks (https://www.standardwebhooks.com): the headers
// webhook-id, webhook-timestamp and webhook-signature, with an HMAC-SHA256 over all three and the body. [Sender.Try]
// makes one attempt; [Sender.Deliver] retries. The id stays the same, so that a receiver can recognise a repetition.
//
// The caller of an execution chooses the address of its messages, but the sender is inside the operator's network. So
// the sender checks each address when it dials, after DNS: it allows only public addresses, and only over TLS, unless
// the operator allows their network. It follows no redirects and uses no proxy from the environment. Its errors quote
// neither the URL, which may contain a token, nor the response.
package webhook
