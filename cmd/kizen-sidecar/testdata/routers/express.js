// The guarded calls on Express. Prints the port that it listens on.
const express = require('express');

const app = express();
app.use(express.urlencoded({ extended: false, limit: '1mb' }), express.json());
// As the documentation of method-override shows it.
app.use((request, _, next) => {
  if (request.method === 'POST' && request.body && typeof request.body === 'object' && '_method' in request.body) {
    request.method = request.body._method;
  }
  next();
});
const guarded = (_, response) => response.status(201).send('GUARDED');
for (const path of ['/api/api-keys', '/api/team/:account/api-keys', '/api/business-config/import']) {
  app.post(path, guarded);
  app.put(path, guarded);
}
app.delete('/api/api-keys/:key', guarded);
app.all('/api/records/:name', (_, response) => response.send('FREE'));
const server = app.listen(0, '127.0.0.1', () => console.log(server.address().port));
