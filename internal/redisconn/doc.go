// Package redisconn opens clients of Redis: one server, Sentinel, Cluster, a socket, or a Redis inside this process. Every
// command is bounded in time, and every failure names the server and what to do about it.
package redisconn
