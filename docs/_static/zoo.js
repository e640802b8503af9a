// Filters and sorting for the table of the model zoo. Without this file the page is the plain table.
(() => {
  const table = document.querySelector('#model-zoo table');
  if (!table) return;
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...table.tBodies[0].rows];
  const text = (row, column) => row.cells[column].textContent.trim();
  const number = (row, column) => parseFloat((text(row, column).match(/(?<=^|\s)\d+(\.\d+)?/) || [])[0]);
  const index = (name) => heads.findIndex((head) => head.textContent.trim() === name);
  const firstNumeric = index('params (M)');
  const tests = [];
  const bar = document.createElement('form');
  bar.className = 'zoo-filter';

  const field = (label, input, test) => {
    const box = document.createElement('label');
    box.append(label, input);
    bar.append(box);
    tests.push((row) => input.value === '' || test(row, input.value));
  };
  const search = Object.assign(document.createElement('input'), { type: 'search' });
  field('name or any word', search, (row, value) =>
    row.textContent.toLowerCase().includes(value.toLowerCase()));
  for (const name of ['task', 'family', 'size', 'data', 'keys', 'licence']) {
    const column = index(name);
    const select = document.createElement('select');
    const parts = (row) => text(row, column).split(',').map((part) => part.trim());
    const values = [...new Set(rows.flatMap(parts).filter(Boolean))].sort();
    for (const value of ['', ...values]) select.add(new Option(value || 'all', value));
    field(name, select, (row, value) => parts(row).includes(value));
  }
  for (const [name, word, fits] of [
    ['params (M)', 'at most', (found, limit) => found <= limit],
    ['MACs (G)', 'at most', (found, limit) => found <= limit],
    ['published', 'at least', (found, limit) => found >= limit],
    ['CPU (images/s)', 'at least', (found, limit) => found >= limit],
  ]) {
    const column = index(name);
    const input = Object.assign(document.createElement('input'), { type: 'number', step: 'any' });
    field(`${name} ${word}`, input, (row, value) => fits(number(row, column), parseFloat(value)));
  }
  const audited = document.createElement('select');
  for (const value of ['', 'audited']) audited.add(new Option(value || 'all', value));
  field('audit', audited, (row) => text(row, index('audit')) !== '');

  const count = document.createElement('output');
  bar.append(count);
  const show = () => {
    for (const row of rows) row.hidden = !tests.every((test) => test(row));
    count.value = `${rows.filter((row) => !row.hidden).length} of ${rows.length} configs`;
  };
  bar.addEventListener('input', show);
  bar.addEventListener('submit', (event) => event.preventDefault());

  heads.forEach((head, column) => {
    let direction = -1;
    head.tabIndex = 0;
    head.title = 'sort';
    const sort = () => {
      direction = -direction;
      const numeric = column >= firstNumeric && rows.some((row) => !Number.isNaN(number(row, column)));
      const last = direction * Infinity; // rows without a number stay at the end
      const key = (row) => (Number.isNaN(number(row, column)) ? last : number(row, column));
      const order = (a, b) =>
        numeric ? key(a) - key(b) || 0 : text(a, column).localeCompare(text(b, column));
      table.tBodies[0].append(...rows.sort((a, b) => direction * order(a, b)));
    };
    head.addEventListener('click', sort);
    head.addEventListener('keydown', (event) => event.key === 'Enter' && sort());
  });
  table.parentElement.before(bar);
  show();
})();
