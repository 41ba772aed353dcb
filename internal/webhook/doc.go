// Package webhook tells somebody's server what became of an execution, so that the server can be sure who says so.
//
// Messages are signed by the conventions of Standard Webhooks (https://www.standardwebhooks.com): the headers webhook-id,
// webhook-timestamp and webhook-signature, with an HMAC-SHA256 over all three and the body. A [Sender] makes one attempt with
// [Sender.Try], or as many as it takes with [Sender.Deliver]; the id stays the same, so that a receiver can tell a repetition.
//
// Where a message goes is somebody's wish, and the sender stands inside the operator's network. So the address is judged when
// it is dialled, after DNS: nothing but a public one, and only over TLS, unless the operator allows its network. Redirects are
// not followed, proxies of the environment not used, and no error quotes the URL, which may hold a token, or the answer.
package webhook
