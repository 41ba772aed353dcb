// Package attacks is the corpus of all attacks on the sidecar, as data. Each attack comes with its required result:
//
//   - code that a step runs: [Programs], [BlockingSteps], [HostileSteps], [Forgeries], [EchoStep], [BuffersStep];
//   - requests that a step sends to its proxy: [Messages], [EscapingPaths], [Targets], [Spellings];
//   - responses of an API: [Answers], [Echoes];
//   - requests of a caller, a web page or a client with a forged key: [Requests], [ExpensiveSteps], [Pages], [Hosts],
//     [Addresses], [Workbench.Tokens];
//   - input to Redis: [UnauthenticatedInputs], [Nonsense];
//   - text that a person reads: [Harmful], [Hidden], [Markup].
//
// The tests of several packages use it.
package attacks
