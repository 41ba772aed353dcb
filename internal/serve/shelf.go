package serve

import "slices"

// shelf holds finished executions by business. [Registry.mu] guards it.
type shelf struct {
	piles map[string]*pile
	count int
	bytes int64
}

// pile holds the executions of one business, the oldest first.
type pile struct {
	executions []*Execution
	bytes      int64
}

func newShelf() shelf { return shelf{piles: map[string]*pile{}} }

func (p *pile) count() int64 { return int64(len(p.executions)) }

func (p *pile) size() int64 { return p.bytes }

// add adds an execution whose size no longer changes.
func (s *shelf) add(e *Execution) {
	p := s.piles[e.BusinessID()]
	if p == nil {
		p = &pile{}
		s.piles[e.BusinessID()] = p
	}
	p.executions = append(p.executions, e)
	s.change(p, 1, e.Size())
}

// remove removes an execution, if the shelf contains it.
func (s *shelf) remove(e *Execution) {
	p := s.piles[e.BusinessID()]
	if p == nil {
		return
	}
	i := slices.Index(p.executions, e)
	if i < 0 {
		return
	}
	p.executions = slices.Delete(p.executions, i, i+1)
	s.change(p, -1, -e.Size())
	if len(p.executions) == 0 {
		delete(s.piles, e.BusinessID())
	}
}

func (s *shelf) change(p *pile, count int, bytes int64) {
	p.bytes += bytes
	s.count, s.bytes = s.count+count, s.bytes+bytes
}

// oldest returns the oldest execution of the business with the most. If several businesses have the most, it returns
// the oldest of all their executions.
func (s *shelf) oldest(much func(*pile) int64) *Execution {
	var of *pile
	for _, p := range s.piles {
		if of == nil || much(p) > much(of) || much(p) == much(of) &&
			p.executions[0].finished.Before(of.executions[0].finished) {
			of = p
		}
	}
	return of.executions[0]
}
