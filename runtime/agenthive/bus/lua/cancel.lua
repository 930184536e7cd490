-- cancel: take a message that waits out of the queue.
-- ARGV: message id, why, life of a status (ms).
-- Returns c cancelled, r a consumer has it, f it is final, u it is not known.
local function cancel(keys, argv)
  local P, now, id = prefix_of(keys), now_ms(), argv[1]
  local place = redis.call('HGET', P .. 'ids', id)
  if not place then
    return finals_of(P, { id })[1] and 'f' or 'u'
  end
  local lane, entry, accepted = string.match(place, '^(%d) (%S+) ?(%d*)')
  local fields, attempts
  if entry == '-' then
    fields = { 'm', string.sub(redis.call('HGET', P .. 'held', id) or '', 2) }
    redis.call('HDEL', P .. 'held', id)
    redis.call('ZREM', P .. 'delayed', 'h' .. id)
    redis.call('HDEL', P .. 'ids', id)
  else
    local stream = P .. 'q:' .. lane
    local pending = redis.pcall('XPENDING', stream, GROUP, entry, entry, 1) -- an error: no consumer ever came
    if not pending.err and pending[1] then
      if pending[1][2] ~= NOBODY then
        return 'r'
      end
      redis.call('ZREM', P .. 'delayed', 'r' .. lane .. ' ' .. entry)
      redis.call('LREM', P .. 'b:' .. lane, 1, entry)
      redis.call('LREM', P .. 's:' .. lane, 1, entry)
    end
    local found = redis.call('XRANGE', stream, entry, entry)[1]
    fields = found and found[2] or NO_OPTIONS
    attempts = redis.call('HGET', P .. 'tries', lane .. ' ' .. entry)
    remove(P, lane, entry, id, 0)
  end
  local _, words, _, document = split_entry(fields)
  give_back(P, #(document or ''))
  local options = options_of(words or '')
  if options.o and entry == '-' then
    leave_line(P, options.o, id, lane)
  elseif options.o then
    finished_in_order(P, options.o, lane, entry)
  end
  if options.y then
    reply(P, id, options.y, options.l, '!' .. argv[2])
  end
  if accepted == '' then
    accepted = string.match(entry, '^%d+')
  end
  keep_final(P, id, table.concat({ 'f', as_ms(now), '0', attempts or '0', accepted, argv[2] }, ' '), now, tonumber(argv[3]))
  return 'c'
end

define('cancel', cancel, { 'allow-oom' })
