package redisconn

import (
	"time"

	"github.com/redis/go-redis/v9"
)

// Flags are the flags of the connection to Redis. Commands embed them in their command line and add a flag for the
// URL, with its own help text.
type Flags struct {
	RedisTimeout time.Duration `help:"Timeout of one Redis command." default:"2s" least:"1ms" placeholder:"DURATION" group:"Redis"`
	RedisCA      string        `name:"redis-ca" help:"PEM file of the certificate authority that verifies Redis's certificate. Default: the system's authorities." placeholder:"FILE" group:"Redis"`
	RedisCert    string        `help:"PEM file of a client certificate for Redis." placeholder:"FILE" group:"Redis"`
	RedisKey     string        `help:"PEM file of the client certificate's key." placeholder:"FILE" group:"Redis"`
}

// Open returns a client for the Redis at url, or, like [Open], for an embedded one.
func (f Flags) Open(url string, embedded *Embedded) (redis.UniversalClient, error) {
	return Open(Config{
		Embedded: embedded, URL: url, Timeout: f.RedisTimeout, CAFile: f.RedisCA, CertFile: f.RedisCert, KeyFile: f.RedisKey,
	})
}
