package main

import (
	"log/slog"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/redisconn"
)

// redisFlags say where the records of keys are kept.
type redisFlags struct {
	RedisURL     string        `help:"Redis that holds the records of keys: redis://, rediss://, redis+sentinel://, redis+cluster:// or unix://. Without it a step runs with an embedded store that only its own process can use." env:"KIZEN_REDIS_URL,REDIS_URL" placeholder:"URL" group:"Redis"`
	RedisTimeout time.Duration `help:"Longest time that one Redis command may take." default:"2s" placeholder:"DURATION" group:"Redis"`
	RedisCA      string        `name:"redis-ca" help:"PEM file of the certificate authority that Redis's certificate is verified with. Default: the system's." placeholder:"FILE" group:"Redis"`
	RedisCert    string        `help:"PEM file of a client certificate for Redis." placeholder:"FILE" group:"Redis"`
	RedisKey     string        `help:"PEM file of the client certificate's key." placeholder:"FILE" group:"Redis"`
}

// connect returns a client for the Redis that the flags name, or for an embedded one. It dials nothing yet.
func (f redisFlags) connect(embedded *redisconn.Embedded) (redis.UniversalClient, error) {
	if f.RedisTimeout <= 0 {
		return nil, usagef("--redis-timeout must be positive")
	}
	client, err := redisconn.Open(redisconn.Config{
		Embedded: embedded, URL: f.RedisURL, Timeout: f.RedisTimeout, CAFile: f.RedisCA, CertFile: f.RedisCert, KeyFile: f.RedisKey,
	})
	if err != nil {
		return nil, usageError{err}
	}
	return client, nil
}

// require connects, for commands that have no use for an embedded store.
func (f redisFlags) require() (redis.UniversalClient, error) {
	if f.RedisURL == "" {
		return nil, usagef("no redis given; name the one that holds the keys with --redis-url")
	}
	return f.connect(nil)
}

// store is a connection to Redis, embedded or not.
type store struct {
	redis.UniversalClient
	embedded *redisconn.Embedded
}

// open connects, or starts the embedded store.
func (f redisFlags) open(log *slog.Logger) (*store, error) {
	s := &store{}
	if f.RedisURL == "" {
		var err error
		if s.embedded, err = redisconn.StartEmbedded(); err != nil {
			return nil, err
		}
		log.Info("using the embedded store, which a platform elsewhere cannot see; set --redis-url to share one")
	}
	var err error
	if s.UniversalClient, err = f.connect(s.embedded); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// close ends the connection, and the embedded store with it.
func (s *store) close() {
	if s.UniversalClient != nil {
		_ = s.Close() // nothing is in flight any more
	}
	if s.embedded != nil {
		s.embedded.Close()
	}
}
