-- send: accept messages into an agent's queue.
-- ARGV: "1" if the batch may have been accepted before (a repetition after a lost connection), else "0", followed, for
-- senders that repeat, by how many connections were lost and a name of the sender ("13 0a1b"), and by " o" where the
-- sender is outside of the hive's agents ("13 0a1b o"); bound of the queue
-- "<messages>[ <bytes>]"; then per message: lane, id, JSON document, ttl (ms), options ("" for none).
-- Returns one character per message: 1 accepted, 2 already known (accepted before), 0 or 4 refused: the queue is full
-- of messages or of bytes, 3 not accepted, for an earlier message has its deduplication key. For each of the latter a
-- line follows: that message's id.

-- Hold a message back until `due`.
local function hold(P, id, lane, document, meta, due, now)
  local text = meta .. ' a' .. as_ms(now) .. '\n' .. id .. '\n' .. document
  redis.call('HSET', P .. 'held', id, lane .. text)
  redis.call('ZADD', P .. 'delayed', as_ms(due), 'h' .. id)
end

-- A deduplication key among the options of a message: it is the first word. Returns the window (ms) and the key.
local function deduplication_of(words)
  local window, key = string.match(words, '^d(%d+):(%S+)')
  return tonumber(window), key
end

-- Whose deduplication keys were used within their windows. `keys` are [number of the message] = { window, key }.
-- Returns by key the id of the message that was accepted with it.
local function takers_of(P, keys, now)
  local names, windows, takers = {}, {}, {}
  for _, pair in pairs(keys) do
    windows[#windows + 1], names[#names + 1] = pair[1], pair[2]
  end
  for i, kept in ipairs(find_kept(P, 'dg', 'dd:', names)) do
    local accepted, id = string.match(kept or '', '^(%d+) (.+)$')
    if id and now - tonumber(accepted) < windows[i] then
      takers[names[i]] = id
    end
  end
  return takers
end

-- From now on `key` stands for the message `id`.
local function keep_taker(P, key, id, now, window)
  local hash, fresh = keep_in(P, 'dg', 'dd:', KEYS_LIMIT, now, window)
  redis.call('HSET', hash, key, as_ms(now) .. ' ' .. id)
  if fresh then
    expire_kept(hash, window)
  end
end

-- Topics (topics.lua) send their copies by it, too.
local function send(keys, argv)
  local P = prefix_of(keys)
  local now = now_ms()
  local again, lost, sender, outside = string.match(argv[1], '^(%d)(%d*) ?(%S*)( ?o?)$')
  if outside == ' o' and closed(P) then
    return CLOSED
  end
  if lost ~= '' then
    if fenced(P, sender, lost) then
      return FENCED
    elseif again == '1' then
      raise_fence(P, sender, lost)
    end
  end
  local most, most_bytes = string.match(argv[2], '^(%d+) ?(%d*)$')
  most, most_bytes = tonumber(most), tonumber(most_bytes) or math.huge
  local ids, count, unique = {}, 0, nil
  for i = 4, #argv, 5 do
    count = count + 1
    ids[count] = argv[i]
    local window, key = deduplication_of(argv[i + 3])
    if key then
      unique = unique or {}
      unique[count] = { window, key }
    end
  end
  local length = redis.call('HLEN', P .. 'ids') -- waiting, delayed and in flight
  local known = length > 0 and redis.call('HMGET', P .. 'ids', unpack(ids)) or NO_OPTIONS
  local finals = again == '1' and finals_of(P, ids)
  local takers = unique and takers_of(P, unique, now)
  local bytes = length > 0 and tonumber(redis.call('GET', P .. 'bytes')) or 0

  local results, earlier, records, changes, seen, streams = {}, {}, {}, 0, {}, {}
  local ready, earliest, full = false, nil, nil
  local like_ttl, expiry = nil, nil -- most messages of a batch expire alike
  for n = 1, count do
    local id, at = ids[n], 5 * n - 2
    local lane, document, ttl, words = argv[at], argv[at + 2], argv[at + 3], argv[at + 4]
    local options = options_of(words)
    local pair = unique and unique[n]
    if known[n] or seen[id] or (finals and finals[n]) then
      results[n] = '2'
    elseif pair and takers[pair[2]] then
      results[n] = '3'
      earlier[#earlier + 1] = '\n' .. takers[pair[2]]
    elseif not options.f and (full or length >= most or (length > 0 and bytes + #document > most_bytes)) then
      full = full or (length >= most and '0' or '4') -- from here on for all, so that large ones have their turn, too
      results[n] = full
    else
      if pair then
        takers[pair[2]] = id
        keep_taker(P, pair[2], id, now, pair[1])
        words = string.match(words, '^%S+ ?(.*)$')
      end
      local due = options.b and tonumber(options.b) or 0
      local entry, now_ready
      if due > now then
        hold(P, id, lane, document, as_14(due + tonumber(ttl)) .. ' ' .. words, due, now)
        entry = '- ' .. as_ms(now)
        earliest = math.min(earliest or due, due)
      else
        if ttl ~= like_ttl then
          like_ttl, expiry = ttl, as_14(now + tonumber(ttl))
        end
        local meta = words == '' and expiry or expiry .. ' ' .. words
        if options.o then
          entry, now_ready = add_in_order(P, options.o, id, lane, meta, document, now)
        else
          streams[lane] = streams[lane] or P .. 'q:' .. lane
          entry, now_ready = redis.call('XADD', streams[lane], '*', 'm', meta .. '\n' .. id .. '\n' .. document), true
        end
        ready = ready or now_ready
      end
      records[changes + 1], records[changes + 2] = id, lane .. ' ' .. entry
      changes = changes + 2
      seen[id] = true
      length, bytes = length + 1, bytes + #document
      results[n] = '1'
    end
  end
  if changes > 0 then
    redis.call('HSET', P .. 'ids', unpack(records))
    redis.call('SET', P .. 'bytes', as_ms(bytes))
  end
  if ready then
    wake(P)
  end
  if earliest then
    wake_by(P, earliest, now)
  end
  return table.concat(results) .. table.concat(earlier)
end

define('send', send, {})
