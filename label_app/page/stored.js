// What the browser keeps for the page. An entry that is damaged, or not `usable`, is forgotten: none stops the page.

export function stored(storage, key, usable) {
  try {
    const value = JSON.parse(storage.getItem(key));
    if (value === null || usable(value)) return value;
  } catch {
    // as one that is not usable
  }
  storage.removeItem(key);
  return null;
}
